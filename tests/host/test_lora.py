"""A LoRA on the host's model and text encoder: all of it, some of it, none of it."""

import logging

import pytest
import torch
from kindred_testing import guidance_families, pack, text_models
from kindred_testing.loras import apply, assert_same_patches, patched_weights, random_kv, random_lora


@pytest.fixture(scope="module")
def model():
    return guidance_families.random_model("SD15")


@pytest.fixture(scope="module")
def clip():
    return text_models.sd15()


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records]


def test_text_encoders_are_patched_and_change_what_a_prompt_means(model, clip, warnings):
    lora = random_lora(model, clip)
    tuned, tuned_clip = apply(model, clip, lora)
    assert any(key.startswith("clip_l.") for key in patched_weights(tuned_clip.patcher)) and patched_weights(tuned)
    encode = lambda c: c.encode_from_tokens(c.tokenize("a photo of a dog"))  # noqa: E731
    with torch.inference_mode():
        assert not torch.equal(encode(tuned_clip), encode(clip))
        assert torch.equal(encode(clip), encode(text_models.sd15()))
    assert not clip.patcher.patches and not model.patches
    assert not warnings()


def test_a_text_encoders_half_without_a_clip_is_said(model, clip, warnings):
    lora = random_lora(model, clip)
    text = [key for key in lora if key.startswith("text_encoders.")]
    assert apply(model, None, lora)[1] is None
    assert warnings() == [f"Kindred: {len(text)} weights of the text encoder are left out because no CLIP is connected."]


def test_strength_and_what_changes_nothing(model, clip):
    lora = random_lora(model, clip)
    with torch.inference_mode():
        assert pack("host.lora").apply_lora(model, clip, lora, 0.0) == (model, clip)
        half, _ = pack("host.lora").apply_lora(model, clip, lora, 0.5)
    full, _ = apply(model, clip, lora)
    base = dict(model.model.named_parameters())
    for key, value in patched_weights(half).items():
        torch.testing.assert_close(2 * (value - base[key]), patched_weights(full)[key] - base[key], rtol=1e-4, atol=1e-5)
    text_only = {key: value for key, value in lora.items() if key.startswith("text_encoders.")}
    assert apply(model, None, text_only) == (model, None)


@pytest.mark.parametrize("kind", ["lora", "diff", "loha", "lokr", "oft", "names"])
def test_another_architecture_is_an_error(model, clip, kind):
    """By its layers' names, or by their shapes: SD 2's K and V are 1024 wide under the names of SD 1's."""
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    states = {
        "lora": {"lora_up.weight": torch.ones(320, 4), "lora_down.weight": torch.ones(4, 1024)},
        "diff": {"diff": torch.ones(320, 1024)},
        "loha": {"hada_w1_a": torch.ones(320, 2), "hada_w1_b": torch.ones(2, 1024), "hada_w2_a": torch.ones(320, 2), "hada_w2_b": torch.ones(2, 1024)},
        "lokr": {"lokr_w1": torch.ones(16, 32), "lokr_w2": torch.ones(20, 32)},
        "oft": {"oft_blocks": torch.ones(4, 160, 160)},
        "names": {"lora_up.weight": torch.ones(320, 4), "lora_down.weight": torch.ones(4, 768)},
    }
    layer = layer if kind != "names" else "diffusion_model.joint_blocks.0.x_block.attn.qkv"
    with pytest.raises(ValueError, match=r"None of the file's \d weights fits this model \(BaseModel\).*another architecture"):
        apply(model, clip, {f"{layer}.{part}": value for part, value in states[kind].items()})


def test_some_that_fit_are_used_and_the_rest_is_said_once(model, clip, warnings):
    good, foreign = random_kv(model), "diffusion_model.joint_blocks.0.x_block.attn.qkv"
    wide = "diffusion_model.middle_block.1.proj_in"
    mixed = {**good, f"{foreign}.diff": torch.ones(4, 4), f"{wide}.lora_up.weight": torch.ones(1280, 4), f"{wide}.lora_down.weight": torch.ones(4, 1280)}
    tuned, _ = apply(model, clip, mixed)
    assert_same_patches(tuned, apply(model, clip, good)[0])
    (message,) = warnings()
    assert f"2 of the LoRA's {len(good) + 2} weights do not belong to this model" in message and "middle_block.1.proj_in" in message
