"""The losses against computations that share no code with them."""

import pytest
import torch
from kindred_testing import pack
from kindred_testing.models import load, sd15_checkpoint
from safetensors.torch import load_file

PROMPT, CLASS_PROMPT = "a photo of a <v1> dog", "a photo of a dog"


def test_masked_reconstruction_is_the_mean_over_what_is_open():
    losses = pack("training.losses")
    prediction, target = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.randn(3, 4, 8, 8, dtype=torch.float64)
    mask = (torch.rand(3, 1, 8, 8) > 0.4).double()
    for row, value in enumerate(losses.reconstruction(prediction, target, mask)):
        open_cells = mask[row, 0].bool()
        expected = ((prediction[row] - target[row])[:, open_cells] ** 2).mean()
        assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    full = losses.reconstruction(prediction, target, torch.ones_like(mask)).float()
    assert torch.allclose(full, losses.reconstruction(prediction, target))


def test_spl_and_its_gradient_equal_transformers():
    """Value and gradient to V* against `transformers`' CLIPTextModel on the same weights, with V* as a row of its own vocabulary."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    path = sd15_checkpoint()
    vector = torch.randn(1, 768, generator=torch.Generator().manual_seed(3)) * 0.02

    _, clip, _ = load(path)
    host, text, losses = pack("host.training"), pack("host.text"), pack("training.losses")
    with host.training_mode():
        trained = vector.clone().requires_grad_()
        token = pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": trained})
        encoder = pack("host.trainable_text").TrainableText(clip)
        own = encoder.eos_features(text.carry_tokens(clip, [token]), PROMPT)
        with torch.no_grad():
            kind = encoder.eos_features(clip, CLASS_PROMPT)
        value = losses.semantic_preservation([losses.drift(own, kind)])
        value.backward()

    config = CLIPTextConfig(
        vocab_size=49409,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="quick_gelu",
        max_position_embeddings=77,
    )
    reference = CLIPTextModel(config).double().eval()
    prefix = "cond_stage_model.transformer."
    state = {name.removeprefix(prefix): tensor.double() for name, tensor in load_file(path).items() if name.startswith(prefix)}
    if not any(name.startswith("text_model.") for name in reference.state_dict()):
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    table = next(name for name in state if name.endswith("token_embedding.weight"))
    state[table] = torch.cat([state[table], vector.double()])
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected and all("position_ids" in name for name in missing)
    row = dict(reference.named_parameters())[table]

    tokenizer = CLIPTokenizer.from_pretrained(text.encoder_tokenizers(clip)["clip_l"].tokenizer.name_or_path)

    def feature(prompt: str) -> torch.Tensor:
        ids = [49406]
        for index, part in enumerate(prompt.split("<v1>")):
            ids += ([49408] if index else []) + tokenizer(part.strip())["input_ids"][1:-1]
        return reference(input_ids=torch.tensor([[*ids, 49407]])).last_hidden_state[0, len(ids)]

    expected = 1 - torch.nn.functional.cosine_similarity(feature(PROMPT), feature(CLASS_PROMPT).detach(), dim=0)
    expected.backward()
    gradient = row.grad[49408]
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (trained.grad[0].double() - gradient).norm() / gradient.norm() < 1e-5
