"""The text encoders in training: the host's encoding, gradients to tokens in every kind of encoder, features for SPL, no second copy."""

import pytest
import torch
from kindred_testing import pack, text_models
from kindred_testing.training import saved_bytes

PROMPT = "a photo of a <v1> dog"


def carrying(clip, vectors: int = 1, seed: int = 5):
    """(CLIP that carries `<v1>`, its vectors by encoder, which require gradients)."""
    text = pack("host.text")
    generator = torch.Generator().manual_seed(seed)
    trained = {key: (torch.randn(vectors, width, generator=generator) * 0.02).requires_grad_() for key, width in text.embedding_widths(clip).items()}
    return text.carry_tokens(clip, [pack("formats.token").LearnedToken("<v1>", "dog", trained)]), trained


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux", "pixart", "mochi"])
def test_encoding_is_the_hosts_and_every_encoders_token_gets_its_gradient(family):
    """The gradient to each encoder's vectors against the difference quotient along a random direction."""
    clip = getattr(text_models, family)()
    with pack("host.training").training_mode():
        encoder = pack("host.trainable_text").TrainableText(clip)
        carried, trained = carrying(clip, vectors=2)

        def value() -> torch.Tensor:
            conditioning, pooled, _ = encoder.encode(carried, PROMPT)
            generator = torch.Generator().manual_seed(1)
            total = 0.0
            for one in (conditioning, pooled):
                if one is not None:
                    one = one.double()  # the difference quotient lives on small differences
                    total = total + (one * torch.randn(one.shape, generator=generator, dtype=torch.float64)).sum()
            return total

        value().backward()
        for key, vectors in trained.items():
            direction = torch.nn.functional.normalize(vectors.grad.flatten(), dim=0).view_as(vectors)
            step = 5e-4 * vectors.detach().norm()  # random T5 layers are far from straight lines
            with torch.no_grad():
                ends = []
                for sign in (1, -1):
                    vectors += sign * step * direction
                    ends.append(value())
                    vectors -= sign * step * direction
            slope, expected = vectors.grad.norm().double(), (ends[0] - ends[1]) / (2 * step)
            assert slope == pytest.approx(expected.item(), rel=0.03), key

        with torch.no_grad():
            ours = {prompt: encoder.encode(carried, prompt) for prompt in (PROMPT, "a (red:1.3) dog")}
    assert list(ours) == [PROMPT, "a (red:1.3) dog"]
    for prompt, (conditioning, pooled, extras) in ours.items():
        with torch.inference_mode():
            expected = carried.encode_from_tokens(carried.tokenize(prompt), return_dict=True)
        assert torch.allclose(conditioning, expected.pop("cond"), rtol=1e-4, atol=1e-4)
        host_pooled = expected.pop("pooled_output")
        assert (pooled is None) == (host_pooled is None)
        assert pooled is None or torch.allclose(pooled, host_pooled, rtol=1e-4, atol=1e-4)
        assert {key: value.tolist() for key, value in extras.items()} == {key: value.tolist() for key, value in expected.items()}


def test_spl_reads_every_clip_of_a_family_and_says_where_there_is_none():
    with pack("host.training").training_mode():
        for family, widths in {"sd15": [768], "sdxl": [1280, 768], "sd3": [1280, 768], "flux": [768]}.items():
            clip = getattr(text_models, family)()
            encoder = pack("host.trainable_text").TrainableText(clip)
            carried, trained = carrying(clip)
            features = encoder.eos_features(carried, PROMPT)
            assert encoder.has_clip and [len(feature) for feature in features] == widths
            sum(feature[0] for feature in features).backward()  # not the sum: a layer norm without scale and shift adds up to zero
            for key, vectors in trained.items():
                assert (vectors.grad is not None and vectors.grad.abs().max() > 0) == key.startswith("clip_"), key
            # the pooled output of CLIP-L in Flux is this very feature
            if family == "flux":
                assert torch.allclose(features[0], encoder.encode(carried, PROMPT).pooled[0], rtol=1e-4, atol=1e-5)
        clip = text_models.pixart()
        encoder = pack("host.trainable_text").TrainableText(clip)
        assert not encoder.has_clip
        with pytest.raises(ValueError, match=r"\(t5xxl\) is not a CLIP.*Set spl_weight to 0"):
            encoder.eos_features(clip, PROMPT)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_an_encoder_of_16_bits_has_no_copy_of_32(family):
    clip = text_models.half(family)
    weights = sum(value.numel() * 2 for value in clip.cond_stage_model.parameters())
    with pack("host.training").training_mode():
        encoder = pack("host.trainable_text").TrainableText(clip)
        assert {value.data_ptr() for value in encoder.model.parameters()} == {value.data_ptr() for value in clip.cond_stage_model.parameters()}
        carried, trained = carrying(clip)
        with saved_bytes(encoder.model) as saved:
            conditioning, pooled, _ = encoder.encode(carried, PROMPT)
        loss = (conditioning * torch.randn(conditioning.shape)).sum() + (pooled * torch.randn(pooled.shape)).sum()
        loss.backward()
        assert all(vectors.grad.abs().max() > 0 for vectors in trained.values())
    assert saved() < weights / 4  # casting every layer to 32 bits, as autograd would keep it, takes twice the weights
