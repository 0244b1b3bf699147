"""Adapters that diffusers and PEFT themselves write, loaded by Load Concept: the host must compute what those libraries compute."""

import logging
import re

import pytest
import torch
from kindred_testing import diffusers_twin, guidance_families, pack, text_models
from safetensors.torch import load_file

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
    return *output.result[:2], "\n".join(output.ui.value if isinstance(output.ui.value, list) else [output.ui.value]) if output.ui else ""


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
