"""What Custom Diffusion's and ClassDiffusion's own code leaves on disk, read by Load Concept; made here by diffusers' own writer where it is there."""

import os
import pickle

import pytest
import torch
from kindred_testing import guidance_families, pack, text_models
from kindred_testing.loras import apply, assert_same_patches, random_kv
from safetensors.torch import save_file

WEIGHTS = "pytorch_custom_diffusion_weights"


@pytest.fixture(scope="module")
def model():
    return guidance_families.random_model("SD15")


@pytest.fixture(scope="module")
def clip():
    return text_models.sd15()


@pytest.fixture
def folder():
    import folder_paths

    place = pack("host.paths").lora_folder().parent / "authors" / "dog"
    place.mkdir(parents=True, exist_ok=True)
    for old in place.iterdir():
        old.unlink()
    folder_paths.filename_list_cache.clear()
    return place


def authors_state(model, kv) -> dict:
    """As `save_attn_procs` writes it to a pickle: whole weights, and an empty dict for each attention that was not trained."""
    layouts, layer_names = pack("formats.layouts"), pack("host.layer_names")
    state = layouts.from_core(kv, "diffusers", layer_names.layer_names(model), layer_names.base_weight(model))[1]
    return {key: value if value.numel() else {} for key, value in state.items()}


def load(model, clip, name="authors/dog/"):
    with torch.inference_mode():
        return pack("nodes.files").KindredLoad.execute(model, clip, name, 1.0).result


def test_the_authors_pickles_load_as_what_was_trained(model, clip, folder):
    kv = random_kv(model)
    torch.save(authors_state(model, kv), folder / f"{WEIGHTS}.bin")
    vectors = torch.randn(2, 768)
    torch.save({"<new1>": vectors[0]}, folder / "<new1>.bin")
    save_file({"<new2>": vectors[1]}, folder / "<new2>.bin", {"format": "pt"})  # their code names safetensors so, too
    torch.save({"state": {}}, folder / "optimizer.bin")
    (folder / "logs").mkdir(exist_ok=True)
    assert "authors/dog/" in pack("host.paths").saved_concepts()
    tuned, tuned_clip, tokens = load(model, clip)
    assert_same_patches(tuned, apply(model, None, kv)[0], rtol=0, atol=1e-7)
    assert [token.text for token in tokens] == ["<new1>", "<new2>"]
    for token, vector in zip(tokens, vectors, strict=True):
        assert torch.equal(token.vectors["clip_l"], vector[None])
    assert set(pack("host.text").carried_tokens(tuned_clip)) == {"<new1>", "<new2>"}
    (folder / "logs").rmdir()
    before = pack("nodes.files").KindredLoad.fingerprint_inputs("authors/dog/")
    torch.save({"<new1>": vectors[0] * 2, "": torch.zeros(0)}, folder / "<new1>.bin")
    assert pack("nodes.files").KindredLoad.fingerprint_inputs("authors/dog/") != before


def test_what_diffusers_itself_saves_loads(model, clip, folder):
    """Its safetensors leave out the untrained attentions, and diffusers then cannot read its own file; we can."""
    diffusers = pytest.importorskip("diffusers")
    from diffusers.models.attention_processor import CustomDiffusionAttnProcessor

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=768,
    )
    kv = random_kv(model)
    state = authors_state(model, kv)
    processors = {}
    for name in unet.attn_processors:
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        processors[name] = CustomDiffusionAttnProcessor(bool(own), False, 320 if own else None, 768 if own else None)
        processors[name].load_state_dict(own)
    unet.set_attn_processor(processors)
    want, _ = apply(model, None, kv)
    for safe in (True, False):
        unet.save_attn_procs(str(folder), safe_serialization=safe)
        assert_same_patches(load(model, clip)[0], want, rtol=0, atol=1e-7)
        for file in folder.iterdir():
            file.unlink()


@pytest.mark.parametrize("form", ["diffusers", "published network"])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_delta_of_custom_diffusions_authors_loads(model, clip, folder, form, compressed):
    """Their code for diffusers and their first code: whole weights, or the two factors of the differences."""
    kv, vectors = random_kv(model, rank=2), torch.randn(2, 768)
    names, base = pack("host.layer_names").layer_names(model).diffusers, dict(model.model.named_parameters())
    weights, want = {}, {}
    for key, value in kv.items():
        layer = key.removesuffix(".diff")
        u, s, v = torch.linalg.svd(value)
        factors = {"u": u[:, :4] * s[:4], "v": v[:4]}
        want[key] = factors["u"] @ factors["v"] if compressed else value
        name = f"{names[layer].removeprefix('unet.')}.weight" if form == "diffusers" else f"model.{layer}.weight"
        weights[name] = factors if compressed else base[f"{layer}.weight"].detach() + value
    if form == "diffusers":
        torch.save({"unet": weights, "modifier_token": {"<new1>": vectors[0], "<new2>": vectors[1]}}, folder / "delta.bin")
    else:
        torch.save({"state_dict": {**weights, "embed": vectors}}, folder / "delta_epoch=000004.ckpt")
    assert "authors/dog/" in pack("host.paths").saved_concepts()
    tuned, _, tokens = load(model, clip)
    assert_same_patches(tuned, apply(model, None, want)[0], rtol=1e-5, atol=1e-6)
    assert [(token.text, token.vectors["clip_l"].tolist()) for token in tokens] == [(f"<new{i + 1}>", [vectors[i].tolist()]) for i in range(2)]
    torch.save({"unet": {}, "modifier_token": {}, "text_encoder": {}}, folder / "delta.bin")
    for file in folder.glob("delta_*"):
        file.unlink()
    with pytest.raises(ValueError, match="whole text encoder"):
        load(model, clip)


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch harmed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("file", [f"{WEIGHTS}.bin", "<new1>.bin"])
def test_a_pickle_that_runs_code_does_not(model, clip, folder, tmp_path, monkeypatch, file):
    monkeypatch.chdir(tmp_path)
    torch.save(authors_state(model, random_kv(model)), folder / f"{WEIGHTS}.bin")
    for write in (lambda path: path.write_bytes(pickle.dumps(Harmful())), lambda path: torch.save({"<new1>": Harmful()}, path)):
        write(folder / file)
        with pytest.raises(ValueError, match=rf"without running code.*{file}"):
            load(model, clip)
    assert not (tmp_path / "harmed").exists()


def test_what_does_not_fit_is_told(model, clip, folder):
    state = authors_state(model, random_kv(model))
    torch.save({key.replace("down_blocks.0", "down_blocks.7"): value for key, value in state.items()}, folder / f"{WEIGHTS}.bin")
    with pytest.raises(ValueError, match=r"does not fit this model \(SD15\), which has no such layer"):
        load(model, clip)
    torch.save({**state, "x.attn2.processor.to_q_custom_diffusion.weight": torch.ones(4, 4)}, folder / f"{WEIGHTS}.bin")
    with pytest.raises(ValueError, match="is not K or V of a cross-attention"):
        load(model, clip)
    torch.save({"a": torch.ones(2)}, folder / f"{WEIGHTS}.bin")
    with pytest.raises(ValueError, match="no Custom Diffusion weights"):
        load(model, clip)
    torch.save(state, folder / f"{WEIGHTS}.bin")
    torch.save({"<new1>": torch.ones(1024)}, folder / "<new1>.bin")
    with pytest.raises(ValueError, match=r"width 1024.*<new1>\.bin"):
        load(model, clip)


@pytest.mark.parametrize("name", ["../", "authors/../../x/", "/etc/", "a\\..\\b/", "a\0/", "/", "C:/x/", "nowhere/"])
def test_no_other_folder_is_reached(folder, name):
    with pytest.raises(ValueError, match="folder"):
        pack("host.paths").find_concept(name)
