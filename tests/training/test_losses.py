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


@pytest.mark.parametrize("kind", ["l2", "huber", "smooth_l1"])
def test_robust_losses_follow_their_definitions(kind):
    """Value by value in Python, with frames too; the gradient of a far outlier stays bounded unless the loss is l2."""
    losses = pack("training.losses")
    generator = torch.Generator().manual_seed(1)
    prediction, target = (torch.randn(2, 3, 1, 4, 4, generator=generator) for _ in range(2))
    mask, d = (torch.rand(2, 1, 4, 4, generator=generator) > 0.3).float(), 0.4

    def one(error: float) -> float:
        far = abs(error) > d
        square = 2 * d * abs(error) - d * d if far else error * error
        return {"l2": error * error, "huber": square, "smooth_l1": square / d}[kind]

    for row, value in enumerate(losses.reconstruction(prediction, target, mask, kind, huber_delta=d)):
        errors = [(prediction[row, c, 0, y, x] - target[row, c, 0, y, x]).item() for c in range(3) for y in range(4) for x in range(4) if mask[row, 0, y, x]]
        assert value.item() == pytest.approx(sum(map(one, errors)) / len(errors), rel=1e-5)
    outlier = torch.full((1, 1, 1, 1), 50.0, requires_grad=True)
    losses.reconstruction(outlier, torch.zeros_like(outlier), kind=kind, huber_delta=d).sum().backward()
    assert outlier.grad.item() == pytest.approx({"l2": 100.0, "huber": 2 * d, "smooth_l1": 2.0}[kind])
    with pytest.raises(ValueError, match="expected one of 'l2', 'huber', 'smooth_l1'"):
        losses.reconstruction(prediction, target, kind="l1")


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_weights_the_error_of_x0(prediction):
    """The paper weights |x0 - x0'|^2 by min(snr, gamma): the same number must come from our weight on the network's own error."""
    losses, gamma = pack("training.losses"), 5.0
    generator = torch.Generator().manual_seed(2)
    sigma = torch.tensor([0.03, 0.3, 0.447, 1.0, 14.0], dtype=torch.float64)
    alpha, beta = 1 / (1 + sigma**2) ** 0.5, sigma / (1 + sigma**2) ** 0.5  # variance preserving: x_t = alpha x0 + beta eps
    x0, eps, error = torch.randn(3, 5, 4, 2, 2, generator=generator, dtype=torch.float64)
    a, b = alpha.view(-1, 1, 1, 1), beta.view(-1, 1, 1, 1)
    noisy = a * x0 + b * eps
    said = (eps if prediction == "eps" else a * eps - b * x0) + error
    guess = (noisy - b * said) / a if prediction == "eps" else a * noisy - b * said
    expected = torch.clamp(alpha**2 / beta**2, max=gamma) * ((guess - x0) ** 2).mean(dim=(1, 2, 3))
    ours = losses.min_snr_weight(sigma**-2, gamma, prediction) * losses.reconstruction(said, said - error)
    assert torch.allclose(ours, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="predicts 'flow'"):
        losses.min_snr_weight(sigma**-2, gamma, "flow")


def test_output_preservation_is_the_distance_from_the_base_and_pulls_only_the_adapted():
    losses = pack("training.losses")
    adapted, base = (torch.randn(3, 4, 8, 8, requires_grad=True) for _ in range(2))
    values = losses.output_preservation(adapted, base)
    for row, value in enumerate(values):
        assert value.item() == pytest.approx(((adapted[row].double() - base[row].double()) ** 2).sum().item() / 256, rel=1e-5)
    values.sum().backward()
    assert base.grad is None and torch.allclose(adapted.grad, 2 * (adapted - base).detach() / 256)
