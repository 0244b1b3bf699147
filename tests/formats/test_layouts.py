"""The layouts, each by the readers of its own world: core's LoraLoader, diffusers' module names, Save and Load Concept."""

import logging

import pytest
import torch
from kindred_testing import guidance_families, pack, text_models
from kindred_testing.loras import apply, assert_same_patches, patched_weights, random_kv, random_lora, stock_loader


@pytest.fixture(scope="module")
def model():
    return guidance_families.random_model("SD15")


@pytest.fixture(scope="module")
def clip():
    return text_models.sd15()


@pytest.fixture(scope="module")
def token():
    return pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": torch.randn(2, 768)}, {"steps": "3"})


def save(lora, tokens, name, **inputs):
    with torch.inference_mode():
        output = pack("nodes.files").KindredSave.execute(lora, tokens, name, overwrite=True, **{"dtype": "float32", **inputs})
    return pack("host.paths").find_concept(name), output.ui.value


def load(model, clip, name):
    with torch.inference_mode():
        return pack("nodes.files").KindredLoad.execute(model, clip, name, 1.0).result


@pytest.mark.parametrize("layout", ["comfyui", "kohya", "diffusers"])
def test_a_lora_of_model_and_text_encoder_survives_every_layout(model, clip, token, layout, caplog):
    """Attention, feed-forward, convolutions and CLIP: Load Concept, and core's own loader where the layout is one of its, give the very weights."""
    lora = random_lora(model, clip)
    want = apply(model, clip, lora)
    path, _ = save(lora, [token], f"lora-{layout}", layout=layout, model=model)
    with caplog.at_level(logging.WARNING):
        got = load(model, clip, f"lora-{layout}")
        assert not caplog.records
        assert_same_patches(got[0], want[0])
        assert_same_patches(got[1].patcher, want[1].patcher)
        assert torch.equal(got[2][0].vectors["clip_l"], token.vectors["clip_l"])
        if layout != "diffusers":
            stock = stock_loader(model, clip, path, caplog)
            assert_same_patches(stock[0], want[0])
            assert_same_patches(stock[1].patcher, want[1].patcher)


def test_the_way_to_kohya_and_back_loses_nothing(model, clip):
    layouts, names = pack("formats.layouts"), pack("host.layer_names").layer_names(model)
    lora = random_lora(model, clip)
    for part, shape in (("hada_w1_a", (320, 4)), ("lokr_w1", (4, 4)), ("oft_blocks", (4, 80, 80)), ("dora_scale", (320, 1)), ("diff_b", (320,))):
        lora[f"diffusion_model.middle_block.1.proj_out.{part}"] = torch.randn(shape)
    _, state, metadata = layouts.from_core(lora, "kohya", names)
    assert all(key.startswith(("lora_unet_", "lora_te_")) and key.count(".") in (1, 2) for key in state)
    assert state["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"].shape == (8, 320, 3, 3)
    assert state["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"].shape == (320, 8, 1, 1)
    back = layouts.to_core(state, metadata, names)
    assert back.keys() == lora.keys()
    assert all(torch.equal(back[key].flatten(), value.flatten()) for key, value in lora.items())


def on_meta(family: str, **config):
    """The host's model of a full-size family without memory."""
    from comfy import model_patcher, supported_models

    chosen = getattr(supported_models, family)({**guidance_families.FAMILIES[family if family != "SD20" else "SD15", "full"], **config})
    chosen.set_inference_dtype(torch.float32, None)
    meta = torch.device("meta")
    return model_patcher.ModelPatcher(chosen.get_model({}, "", device=meta), load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


UNETS = {  # the published configurations
    "SD15": {"cross_attention_dim": 768},
    "SD20": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True},
    "SDXL": {
        "cross_attention_dim": 2048,
        "attention_head_dim": [5, 10, 20],
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("family", UNETS)
def test_every_layer_has_the_name_and_shape_that_diffusers_gives_it(family):
    """All weights of the full-size networks, against diffusers' own modules; and kohya's rule, which joins those names by `_`."""
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**UNETS[family])
    config = {} if family != "SD20" else {"context_dim": 1024, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64}
    names = pack("host.layer_names").layer_names(on_meta(family, **config))
    theirs = {f"unet.{name}": module.weight.shape for name, module in unet.named_modules() if getattr(module, "weight", None) is not None}
    ours = {name: names.shapes[layer] for layer, name in names.diffusers.items() if layer in names.shapes}
    assert ours == theirs
    word = {layer: name for layer, name in names.kohya.items() if layer in names.shapes}
    if family == "SDXL":  # kohya trains SDXL on the published network
        assert all(name == "lora_unet_" + layer.removeprefix("diffusion_model.").replace(".", "_") for layer, name in word.items())
    else:
        assert set(word.values()) == {"lora_unet_" + name.removeprefix("unet.").replace(".", "_") for name in theirs}


def test_sdxl_and_transformers_have_the_words_of_published_files():
    """Keys as they stand in files that people share."""
    xl = pack("host.layer_names").layer_names(on_meta("SDXL")).kohya
    assert {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k",
        "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_output_blocks_0_1_proj_in",
        "lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_2",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_output_blocks_2_2_conv",
        "lora_unet_label_emb_0_0",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        "lora_te1_text_model_encoder_layers_11_self_attn_k_proj",
        "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
    } <= set(xl.values())
    sd3 = pack("host.layer_names").layer_names(guidance_families.random_model("SD3")).kohya
    assert {
        "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "lora_te1_text_model_encoder_layers_0_mlp_fc2",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    } <= set(sd3.values())


@pytest.mark.parametrize("family", ["SD15", "SDXL", "SD3"])
def test_a_name_means_one_layer(family):
    """Whatever tool a name is of; a text encoder's layer without the encoder is asked for where there are two."""
    names = pack("host.layer_names").layer_names(on_meta(family) if family != "SD3" else guidance_families.random_model("SD3"))
    for name, layers in names._known.items():
        bare = name.startswith(("text_model.", "encoder.", "text_projection"))
        assert len(layers) == 1 or (bare and family != "SD15" and all(layer.startswith("text_encoders.") for layer in layers)), name


ONETRAINER = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    "lora_unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    "unet.input_blocks.4.1.transformer_blocks.0.attn2.to_k": "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    "lora_te2.text_model.encoder.layers.0.mlp.fc1": "text_encoders.clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
    "clip_g.text_model.encoder.layers.0.self_attn.q_proj": "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.q_proj",
    "lora_te2_text_projection": "text_encoders.clip_g.transformer.text_projection",
    "text_encoder_2.text_model.encoder.layers.0.self_attn.to_out": "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.out_proj",
    "text_encoder_2.encoder.layers.0.self_attn.out_proj": "text_encoders.clip_g.transformer.text_model.encoder.layers.0.self_attn.out_proj",
    "lora_te1_encoder_layers_0_self_attn_v_proj": "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.v_proj",
}


def test_sdxl_layers_by_the_names_of_onetrainer_and_others():
    """OneTrainer's three spellings, diffusers before and after PEFT, transformers 4 and 5: up, down and alpha arrive at the layer."""
    names = pack("host.layer_names").layer_names(on_meta("SDXL"))
    for name, layer in ONETRAINER.items():
        state = {f"{name}.{part}": torch.ones(2, 2) for part in ("lora_up.weight", "lora_down.weight", "dora_scale")} | {f"{name}.alpha": torch.tensor(1.0)}
        read = pack("formats.layouts").to_core(state, {}, names)
        assert read.keys() == {f"{layer}.{part}" for part in ("lora_up.weight", "lora_down.weight", "dora_scale", "alpha")}, name


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_a_transformers_fused_layers_are_read_by_cores_loader(layout, caplog):
    """SD3: q, k and v are one layer in the host and three in diffusers."""
    model = guidance_families.random_model("SD3")
    layers = ("joint_blocks.0.x_block.attn.qkv", "joint_blocks.0.context_block.attn.qkv", "joint_blocks.0.x_block.mlp.fc1", "joint_blocks.1.x_block.attn.proj")
    lora = random_lora(model, layers=layers)
    want, _ = apply(model, None, lora)
    path, _ = save(lora, [], f"sd3-{layout}", layout=layout, model=model)
    assert_same_patches(stock_loader(model, None, path, caplog)[0], want, rtol=1e-5, atol=1e-6)
    assert_same_patches(load(model, text_models.sd15(), f"sd3-{layout}")[0], want, rtol=1e-5, atol=1e-6)
    if layout == "diffusers":
        state = pack("formats.safefile").read(path)[0]
        assert (
            state["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"].shape[0]
            == model.model.diffusion_model.joint_blocks[0].x_block.attn.qkv.out_features // 3
        )
        layer = "diffusion_model.final_layer.adaLN_modulation.1"
        with pytest.raises(ValueError, match="no counterpart in diffusers"):
            save({f"{layer}.lora_up.weight": torch.ones(4, 1), f"{layer}.lora_down.weight": torch.ones(1, 4)}, [], "sd3-not", layout=layout, model=model)


@pytest.mark.parametrize("layout", ["comfyui", "kohya", "diffusers"])
def test_a_token_alone_is_a_concept_too(model, clip, token, layout):
    save({}, [token], f"token-{layout}", layout=layout, model=model, compress=0.9)
    tuned, _, tokens = load(model, clip, f"token-{layout}")
    assert tuned is model and torch.equal(tokens[0].vectors["clip_l"], token.vectors["clip_l"])


def test_what_a_layout_cannot_hold_is_said(model):
    lora = random_lora(model)
    with pytest.raises(ValueError, match="Connect that MODEL"):
        save(lora, [], "no", layout="kohya")
    with pytest.raises(ValueError, match=r"LoRA only.*hada_w1_a"):
        save({"diffusion_model.middle_block.1.proj_in.hada_w1_a": torch.ones(4, 4)}, [], "no", layout="diffusers", model=model)
    with pytest.raises(ValueError, match=r"no name in kohya's layout for SD15"):
        save({"diffusion_model.nowhere.lora_up.weight": torch.ones(4, 4)}, [], "no", layout="kohya", model=model)
    with pytest.raises(ValueError, match="K and V of cross-attentions only"):
        save({"diffusion_model.middle_block.1.proj_in.diff": torch.ones(4, 4)}, [], "no", layout="diffusers", model=model)
    with pytest.raises(ValueError, match="There is no saved concept 'no'"):
        pack("host.paths").find_concept("no")


def test_kv_as_custom_diffusions_whole_weights_and_back(model, clip, token):
    """The base is half precision finer than the difference: whole weights are float32 whatever dtype is asked for."""
    kv = random_kv(model)
    want, _ = apply(model, None, kv)
    _, ui = save(kv, [token], "kv-cd", layout="diffusers", model=model, dtype="float16")
    assert "Layout: custom_diffusion" in ui
    got, _, tokens = load(model, clip, "kv-cd")
    assert_same_patches(got, want, rtol=0, atol=1e-7)
    assert [token.text for token in tokens] == ["<v1>"]
    other = guidance_families.random_model("SDXL")
    with pytest.raises(ValueError, match=r"does not fit this model \(SDXL\), which has \[\d+, 2048\] there"):
        load(other, clip, "kv-cd")


@pytest.mark.parametrize("layout", ["comfyui", "kohya", "diffusers"])
def test_compressed_kv_is_a_lora_that_everybody_reads(model, clip, layout, caplog):
    kv = random_kv(model, rank=5)
    path, ui = save(kv, [], f"kv-{layout}", layout=layout, compress=0.99, model=model, dtype="float16")
    _, metadata = pack("formats.safefile").read(path)
    error = float(metadata["kindred.compress_error"])
    assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_output_name"] == f"kv-{layout}"
    assert 0 < error < 0.1 and f"relative error {error:.1%}" in ui
    got, _, _ = load(model, clip, f"kv-{layout}")
    base = {key: value.detach() for key, value in model.model.named_parameters()}
    lost = sum((value - base[key].float() - kv[key.removesuffix(".weight") + ".diff"]).square().sum() for key, value in patched_weights(got).items())
    assert (lost / sum(value.square().sum() for value in kv.values())).sqrt() == pytest.approx(error, rel=0.02)
    assert path.stat().st_size < 0.15 * sum(value.numel() * 2 for value in kv.values())
    if layout != "diffusers":
        assert_same_patches(stock_loader(model, clip, path, caplog)[0], got)
    else:
        assert not any("custom_diffusion" in key for key in pack("formats.safefile").read(path)[0])


@pytest.mark.parametrize("energy", [-0.5, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(energy):
    with pytest.raises(ValueError, match="compress is"):
        pack("formats.low_rank").compress({"a.diff": torch.ones(4, 4)}, energy)


def test_truncation_is_the_best_there_is_and_keeps_what_it_cannot_shrink():
    low_rank = pack("formats.low_rank")
    matrix = torch.randn(64, 96, generator=torch.Generator().manual_seed(1))
    full = low_rank.compress({"a.diff": matrix, "b.diff": torch.zeros(8, 8), "c.alpha": torch.tensor(1.0)}, 0.999)
    assert torch.equal(full.state["a.diff"], matrix) and full.ranks == {"b": 1} and full.error == 0 and "c.alpha" in full.state
    small = low_rank.compress({"a.diff": matrix}, 0.5)
    rank = small.ranks["a"]
    s = torch.linalg.svdvals(matrix).double().square()
    assert s[:rank].sum() >= 0.5 * s.sum() > s[: rank - 1].sum()  # the lowest rank that keeps the share
    assert small.error == pytest.approx((s[rank:].sum() / s.sum()).sqrt().item(), rel=1e-4)  # Eckart-Young
    assert low_rank.compress({"a.diff": matrix}, 0.999, always=True).ranks["a"] > 38
