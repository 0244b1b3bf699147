"""Our files in diffusers itself: the real pipeline's loaders, on a network with the host's own weights. And A1111's rule."""

from pathlib import Path

import pytest
import torch
from kindred_testing import diffusers_twin, guidance_families, pack, text_models
from kindred_testing.loras import apply, patched_weights, random_kv, random_lora
from safetensors.torch import load_file

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def model():
    return guidance_families.random_model("SD15")


@pytest.fixture(scope="module")
def clip():
    return text_models.sd15()


@pytest.fixture
def pipe(model, clip):
    return diffusers_twin.pipeline(model, clip)


def save(lora, tokens, name, **inputs) -> Path:
    with torch.inference_mode():
        pack("nodes.files").KindredSave.execute(lora, tokens, name, overwrite=True, **{"dtype": "float32", "layout": "diffusers", **inputs})
    return pack("host.paths").find_concept(name)


def merged(module) -> dict[str, torch.Tensor]:
    """Weights as PEFT merges them, under the names of the network without adapters."""
    return {key.replace(".base_layer.", "."): value for key, value in module.state_dict().items() if "lora_" not in key}


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_load_lora_weights_gives_the_hosts_own_weights(model, clip, pipe, layout):
    """U-Net (attention, feed-forward, convolutions) and text encoder; ranks and alpha differ from layer to layer."""
    lora = random_lora(model, clip)
    tuned, tuned_clip = apply(model, clip, lora)
    path = save(lora, [], f"pipe-{layout}", layout=layout, model=model)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.fuse_lora()
    names = pack("host.layer_names").layer_names(model).diffusers
    unet, text = merged(pipe.unet), merged(pipe.text_encoder)
    for key, value in patched_weights(tuned).items():
        torch.testing.assert_close(unet[f"{names[key.removesuffix('.weight')].removeprefix('unet.')}.weight"], value, rtol=1e-5, atol=1e-6)
    for key, value in patched_weights(tuned_clip.patcher).items():
        name = key.removeprefix("clip_l.transformer.")
        torch.testing.assert_close(text.get(name, text.get(name.removeprefix("text_model."))), value, rtol=1e-5, atol=1e-6)


def test_load_attn_procs_draws_with_our_k_and_v(model, pipe):
    """Custom Diffusion's processors compute what the host computes with the differences patched in."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    kv = random_kv(model)
    tuned, _ = apply(model, None, kv)
    path = save(kv, [], "pipe-kv", model=model)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 768)
    with torch.no_grad():
        before = pipe.unet(*inputs).sample
        pipe.unet.load_attn_procs(str(path.parent), weight_name=path.name, _pipeline=pipe)
        after = pipe.unet(*inputs).sample
    processors = pipe.unet.attn_processors
    assert all(type(processor).__name__ == "CustomDiffusionAttnProcessor" for processor in processors.values())
    names = pack("host.layer_names").layer_names(model).diffusers
    merged_unet = dict(pipe.unet.state_dict())
    for key, value in patched_weights(tuned).items():
        attention, _, projection = names[key.removesuffix(".weight")].removeprefix("unet.").rpartition(".")
        torch.testing.assert_close(getattr(processors[f"{attention}.processor"], f"{projection}_custom_diffusion").weight, value, rtol=0, atol=0)
        merged_unet[f"{attention}.{projection}.weight"] = value
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    pipe.unet.load_state_dict({key: value for key, value in merged_unet.items() if "_custom_diffusion" not in key})
    with torch.no_grad():
        torch.testing.assert_close(after, pipe.unet(*inputs).sample, rtol=1e-4, atol=1e-5)
    assert (after - before).abs().max() > 1e-3


def test_compressed_kv_is_a_lora_in_diffusers_too(model, pipe):
    kv = random_kv(model, rank=4)
    path = save(kv, [], "pipe-small", model=model, compress=0.95)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.fuse_lora()
    state, _ = pack("formats.safefile").read(path)
    names, base, unet = pack("host.layer_names").layer_names(model).diffusers, dict(model.model.named_parameters()), merged(pipe.unet)
    for key in kv:
        layer = key.removesuffix(".diff")
        want = base[f"{layer}.weight"] + state[f"{names[layer]}.lora_B.weight"] @ state[f"{names[layer]}.lora_A.weight"]
        torch.testing.assert_close(unet[f"{names[layer].removeprefix('unet.')}.weight"], want, rtol=1e-5, atol=1e-6)


def test_load_textual_inversion_reads_our_token(pipe, tmp_path):
    vectors = torch.randn(2, 768)
    path = pack("formats.token_file").save(pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": vectors}), tmp_path / "dog.safetensors")
    pipe.load_textual_inversion(str(tmp_path), weight_name=path.name)
    ids = pipe.tokenizer.convert_tokens_to_ids(["<v1>", "<v1>_1"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], vectors)
    assert pipe.maybe_convert_prompt("a photo of a <v1> dog", pipe.tokenizer) == "a photo of a <v1> <v1>_1 dog"


def a1111(path: Path):
    """What A1111 makes of an embedding file: `clip_l` with `clip_g` is SDXL's, else the one tensor there may be, one row for each vector."""
    data = load_file(path)
    if "clip_g" in data and "clip_l" in data:
        return data["clip_g"].shape[0], {key: data[key].shape[1] for key in ("clip_l", "clip_g")}
    assert len(data) == 1, "embedding file has multiple terms in it"
    (value,) = data.values()
    value = value.unsqueeze(0) if value.ndim == 1 else value
    return value.shape[0], value.shape[1]


def test_a1111_finds_the_vectors(tmp_path):
    files, token = pack("formats.token_file"), pack("formats.token").LearnedToken
    one = files.save(token("<v1>", "dog", {"clip_l": torch.randn(3, 768)}), tmp_path / "one.safetensors")
    two = files.save(token("<v1>", "dog", {"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}), tmp_path / "two.safetensors")
    assert a1111(one) == (3, 768)
    assert a1111(two) == (2, {"clip_l": 768, "clip_g": 1280})
