"""Adapters that diffusers and PEFT themselves write, loaded by Load Concept: the host must compute what those libraries compute."""

import json
import logging
import re

import pytest
import torch
from kindred_testing import diffusers_twin, guidance_families, pack, text_models
from kindred_testing.loras import assert_same_patches, patched_weights
from safetensors.torch import load_file, save_file

peft = pytest.importorskip("peft")
pytest.importorskip("diffusers")

UNET = ["attn1.to_q", "attn2.to_k", "attn2.to_out.0", "ff.net.0.proj", "conv1", "proj_in", "conv_shortcut", "time_emb_proj"]
TEXT = ["q_proj", "out_proj", "fc1"]


@pytest.fixture(scope="module")
def model():
    return guidance_families.random_model("SD15")


@pytest.fixture(scope="module")
def clip():
    return text_models.sd15()


@pytest.fixture
def pipe(model, clip):
    return diffusers_twin.pipeline(model, clip)


@pytest.fixture
def folder():
    import folder_paths

    place = pack("host.paths").lora_folder()
    place.mkdir(parents=True, exist_ok=True)
    yield place
    folder_paths.filename_list_cache.clear()


def attach(network, seed=0, **config):
    """A PEFT adapter on `network` whose every tensor is random."""
    kind = config.pop("kind", "LoraConfig")
    peft.inject_adapter_in_model(getattr(peft, kind)(**config), network)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "magnitude" in name:
                value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator))
            elif re.search(r"lora_|hada_|lokr_", name):
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)


def adapter(network):
    return peft.get_peft_model_state_dict(network), network.peft_config["default"].to_dict()


def save_lora(pipe, folder, name, metadata=True):
    unet, unet_config = adapter(pipe.unet)
    text, text_config = adapter(pipe.text_encoder)
    extra = {"unet_lora_adapter_metadata": unet_config, "text_encoder_lora_adapter_metadata": text_config} if metadata else {}
    pipe.save_lora_weights(folder, unet, text, weight_name=f"{name}.safetensors", **extra)
    return folder / f"{name}.safetensors"


def load(model, clip, name):
    """(model, clip, what the node shows)"""
    with torch.inference_mode():
        output = pack("nodes.files").KindredLoad.execute(model, clip, name, 1.0)
    return *output.result[:2], output.ui.value


CONFIGS = {
    "alpha": {"r": 4, "lora_alpha": 16},
    "rsLoRA": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "patterns": {"r": 4, "lora_alpha": 2, "rank_pattern": {"to_k": 2, "q_proj": 8}, "alpha_pattern": {"to_k": 6, ".*fc[0-9]": 3, "^mid_block.*proj_in": 5}},
    "rsLoRA with patterns": {"r": 4, "lora_alpha": 2, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_k": 6}, "use_rslora": True},
    "DoRA": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "DoRA with rsLoRA": {"r": 4, "lora_alpha": 8, "use_dora": True, "use_rslora": True},
    "biases": {"r": 4, "lora_alpha": 8, "lora_bias": True},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_lora_of_todays_diffusers_draws_the_same(model, clip, pipe, folder, kind, caplog):
    """Case 41: U-Net and text encoder, by diffusers' own save_lora_weights with its metadata."""
    before = diffusers_twin.theirs(pipe)
    unbiased = ["to_k", "to_q"] if kind == "biases" else []  # layers without a bias
    attach(pipe.unet, target_modules=[name for name in UNET if not name.endswith(tuple(unbiased))] if unbiased else UNET, **CONFIGS[kind])
    attach(pipe.text_encoder, seed=1, target_modules=TEXT, **CONFIGS[kind])
    after = diffusers_twin.theirs(pipe)
    assert all((a - b).norm() > 0.01 * b.norm() for a, b in zip(after, before, strict=True))
    path = save_lora(pipe, folder, "foreign")
    keys = load_file(path).keys()
    with caplog.at_level(logging.WARNING):
        tuned, tuned_clip, said = load(model, clip, "foreign")
    assert not caplog.records and "left out" not in said
    diffusers_twin.assert_same_pictures(tuned, tuned_clip, pipe)
    assert any(key.startswith("text_encoder.") for key in keys)


@pytest.mark.parametrize("form", ["text_model", "flat"])
def test_both_spellings_of_clips_layers_load(model, clip, pipe, folder, form):
    """transformers 5 has no `text_model.` in CLIP's keys, transformers 4 has."""
    attach(pipe.text_encoder, target_modules=TEXT, r=4, lora_alpha=8)
    state, _ = adapter(pipe.text_encoder)
    prefix = "text_encoder.text_model." if form == "text_model" else "text_encoder."
    save_file({f"{prefix}{key.removeprefix('text_model.')}": value for key, value in state.items()}, folder / "spelled.safetensors")
    tuned, tuned_clip, said = load(model, clip, "spelled")
    pipe.text_encoder.peft_config["default"].lora_alpha = 4
    for module in pipe.text_encoder.modules():
        if hasattr(module, "scaling"):
            module.scaling["default"] = 1.0  # without metadata, diffusers takes alpha for the rank
    diffusers_twin.assert_same_pictures(tuned, tuned_clip, pipe)
    assert said.startswith("Changed: 0 weights of the model, 9 of the text encoder")


def as_peft_saves(network, place):
    """The files that PeftModel.save_pretrained writes, for a network without a PeftModel around it."""
    state, _ = adapter(network)
    place.mkdir(parents=True, exist_ok=True)
    save_file({f"base_model.model.{key}": value for key, value in state.items()}, place / "adapter_model.safetensors", {"format": "pt"})
    network.peft_config["default"].save_pretrained(place)


@pytest.mark.parametrize("kind", ["rsLoRA with patterns", "DoRA"])
def test_pefts_own_folders_draw_the_same(model, clip, pipe, folder, kind):
    """Case 41: a folder for each part of the pipeline, as PEFT's DreamBooth example writes them."""
    attach(pipe.unet, target_modules=UNET, **CONFIGS[kind])
    attach(pipe.text_encoder, seed=1, target_modules=TEXT, **CONFIGS[kind])
    place = folder.parent / "peft" / "dog"
    as_peft_saves(pipe.unet, place / "unet")
    as_peft_saves(pipe.text_encoder, place / "text_encoder")
    assert "peft/dog/" in pack("host.paths").saved_concepts()
    tuned, tuned_clip, said = load(model, clip, "peft/dog/")
    diffusers_twin.assert_same_pictures(tuned, tuned_clip, pipe)
    assert "left out" not in said and "alpha" not in said


def test_peft_itself_saves_what_loads(model, clip, pipe, folder):
    """PeftModel.save_pretrained on the U-Net alone; the names of its layers do not say the part of the pipeline."""
    wrapped = peft.get_peft_model(pipe.unet, peft.LoraConfig(r=4, lora_alpha=16, use_rslora=True, target_modules=UNET))
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.05)
    wrapped.save_pretrained(folder.parent / "alone")
    tuned, tuned_clip, _ = load(model, clip, "alone/")
    diffusers_twin.assert_same_pictures(tuned, tuned_clip, pipe)
    # Beside the concepts, with its configuration: the same. The file alone does not say its strength.
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / file).write_bytes((folder.parent / "alone" / file).read_bytes())
    beside = load(model, clip, "adapter_model")
    assert_same_patches(beside[0], tuned)
    assert beside[2] == f"Changed: {sum('.lora_A.' in name for name in dict(wrapped.named_parameters()))} weights of the model, 0 of the text encoder"
    (folder / "alone.safetensors").write_bytes((folder.parent / "alone" / "adapter_model.safetensors").read_bytes())
    assert "adapter_config.json" in load(model, clip, "alone")[2]


@pytest.mark.parametrize("kind", ["LoHaConfig", "LoKrConfig"])
def test_pefts_loha_and_lokr_draw_the_same(model, clip, pipe, folder, kind):
    attach(pipe.unet, kind=kind, r=4, alpha=6, target_modules=UNET, alpha_pattern={"to_k": 3})
    place = folder.parent / "lycoris" / "unet"
    as_peft_saves(pipe.unet, place)
    tuned, tuned_clip, said = load(model, clip, "lycoris/")
    diffusers_twin.assert_same_pictures(tuned, tuned_clip, pipe)
    assert "left out" not in said


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"peft_type": "IA3"}, "PEFT's type IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialized with 'pissa_niter_4'"),
        ({"alpha_pattern": {"(a+)+$": 1}}, "too complex"),
        ({"alpha_pattern": {"to_k[": 1}}, "not a regular expression"),
        ({"lora_alpha": "much"}, "not a number"),
        ({"layer_replication": [[0, 1]]}, "'layer_replication'"),
    ],
)
def test_a_configuration_that_asks_for_more_is_refused(model, clip, folder, changes, message):
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    state = {f"{layer}.lora_A.weight": torch.ones(2, 768), f"{layer}.lora_B.weight": torch.ones(320, 2)}
    config = {f"unet.{key}": value for key, value in {"peft_type": "LORA", "r": 2, "lora_alpha": 2, **changes}.items()}
    save_file(state, folder / "asks.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    with pytest.raises(ValueError, match=message):
        load(model, clip, "asks")


def test_a_text_encoder_that_the_file_does_not_name_is_asked_for(folder):
    """SDXL has two: PEFT's folder of one of them must say which."""
    model, clip = guidance_families.random_model("SDXL"), text_models.sdxl()
    place = folder.parent / "which" / "text_encoder_2"
    place.mkdir(parents=True)
    layer = "base_model.model.encoder.layers.0.self_attn.q_proj"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 1280), f"{layer}.lora_B.weight": torch.ones(1280, 2)}, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    _, tuned_clip, _ = load(model, clip, "which/")
    assert list(tuned_clip.patcher.patches) == ["clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"]
    place.rename(place.with_name("mine"))
    with pytest.raises(ValueError, match=r"which text encoder \(clip_l, clip_g\)"):
        load(model, clip, "which/mine/")


@pytest.mark.parametrize("form", ["diffusers", "PEFT"])
def test_a_transformers_pieces_have_their_strength(folder, form):
    """SD3: q is some rows of the host's qkv; rsLoRA and DoRA by their formulas."""
    model, clip = guidance_families.random_model("SD3"), text_models.sd3()
    names = pack("host.layer_names").layer_names(model)
    layer = "diffusion_model.joint_blocks.0.x_block.attn.qkv"
    name, first, rows = names.split[layer][1]
    weight = model.model.get_parameter(f"{layer}.weight").detach()
    down, up, size = torch.randn(4, weight.shape[1]), torch.randn(rows, 4), torch.rand(rows) + 0.5
    front = "" if form == "diffusers" else "base_model.model."
    key = name if form == "diffusers" else front + name.removeprefix("transformer.")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 3, "use_rslora": True, "use_dora": True}
    place = folder.parent / f"pieces-{form}"
    place.mkdir()
    state = {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up, f"{key}.lora_magnitude_vector": size}
    if form == "diffusers":
        about = {"lora_adapter_metadata": json.dumps({f"transformer.{setting}": value for setting, value in config.items()})}
        save_file(state, place / "pytorch_lora_weights.safetensors", about)
    else:
        save_file(state, place / "adapter_model.safetensors")
        (place / "adapter_config.json").write_text(json.dumps(config))
    tuned, _, said = load(model, clip, f"{place.name}/")
    changed = weight[first : first + rows] + 3 / 4**0.5 * up @ down
    want = weight.clone()
    want[first : first + rows] = size[:, None] * changed / changed.norm(dim=1, keepdim=True)
    torch.testing.assert_close(patched_weights(tuned)[f"{layer}.weight"], want, rtol=1e-5, atol=1e-5)
    assert said.startswith("Changed: 1 weights of the model")


def test_a_bundled_embedding_becomes_a_token(model, clip, pipe, folder):
    """OneTrainer's LoRA with its embedding inside."""
    vectors = torch.randn(2, 768)
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    state = {f"{layer}.lora_down.weight": torch.ones(2, 768), f"{layer}.lora_up.weight": torch.ones(320, 2), f"{layer}.alpha": torch.tensor(1.0)}
    save_file({**state, "bundle_emb.hero.clip_l": vectors}, folder / "bundled.safetensors")
    with torch.inference_mode():
        output = pack("nodes.files").KindredLoad.execute(model, clip, "bundled", 1.0)
    _, tuned_clip, (token,) = output.result
    assert token.text == "hero" and torch.equal(token.vectors["clip_l"], vectors)
    assert set(pack("host.text").carried_tokens(tuned_clip)) == {"hero"}
    assert output.ui.value == "Changed: 1 weights of the model, 0 of the text encoder"
