"""Reduced diffusion transformers with random weights: the host's own classes and configurations, few and narrow blocks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from . import guidance_families
from .guidance_models import comfy

_MMDIT = {
    "in_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "pos_embed_scaling_factor": None,
    "pos_embed_max_size": 32,
    "num_patches": 32 * 32,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}},
    "depth": 2,
    "qk_norm": "rms",
}
_FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_LUMINA = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 192,
    "cap_feat_dim": 128,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "qk_norm": True,
    "n_heads": 2,
    "n_kv_heads": 1,
    "axes_dims": [32, 32, 32],
    "axes_lens": [300, 512, 512],
    "rope_theta": 10000.0,
}


@dataclass(frozen=True)
class Family:
    """The host's configuration and its network's arguments; the embeddings (width, pooled, lengths) of two prompts; the size of its latents."""

    config: str
    network: dict
    width: int
    pooled: int | None = None
    lengths: tuple[int, int] = (77, 77)
    size: tuple[int, ...] = (8, 8)
    extras: dict = field(default_factory=dict)


FAMILIES = {
    "SD3": Family("SD3", _MMDIT, 4096, 2048, (154, 154)),
    "SD3.5 medium": Family("SD3", {**_MMDIT, "x_block_self_attn_layers": [0]}, 4096, 2048, (154, 154)),
    "Flux": Family("Flux", _FLUX, 4096, 768, (256, 256)),
    "Flux schnell": Family("FluxSchnell", {**_FLUX, "guidance_embed": False}, 4096, 768, (256, 300)),
    "AuraFlow": Family(
        "AuraFlow", {"cond_seq_dim": 2048, "dim": 128, "n_layers": 3, "n_double_layers": 1, "n_heads": 2, "global_conddim": 128, "max_seq": 256}, 2048, None, (256, 256)
    ),
    "Lumina 2": Family("Lumina2", {**_LUMINA, "ffn_dim_multiplier": 4.0}, 128, None, (9, 13)),
    "Z-Image": Family(
        "ZImage",
        {**_LUMINA, "dim": 288, "n_heads": 3, "n_kv_heads": 3, "ffn_dim_multiplier": 8.0 / 3.0, "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32, "rope_theta": 256.0},
        128,
        None,
        (9, 13),
    ),
    "PixArt": Family(
        "PixArtSigma",
        {"image_model": "pixart_sigma", "hidden_size": 144, "num_heads": 2, "depth": 2, "input_size": 64, "pe_interpolation": 1, "micro_condition": False, "caption_channels": 128, "model_max_length": 300},
        128,
        None,
        (9, 13),
        (40, 40),  # it rounds the size of its position grid to 64 latent cells
    ),
    "HunyuanDiT": Family("HunyuanDiT", {"image_model": "hydit", "hidden_size": 176, "depth": 4, "num_heads": 2}, 1024, extras={"attention_mask": torch.ones(1, 77), "conditioning_mt5xl": torch.ones(1, 256, 2048), "attention_mask_mt5xl": torch.ones(1, 256)}),
    "Chroma": Family("Chroma", {**{k: v for k, v in _FLUX.items() if k != "guidance_embed"}, "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 128, "hidden_dim": 64, "n_layers": 2, "vec_in_dim": None}, 4096, None, (9, 13)),
    "Qwen-Image": Family("QwenImage", {"image_model": "qwen_image", "in_channels": 64, "num_layers": 2, "num_attention_heads": 1, "joint_attention_dim": 128}, 128, None, (9, 13), size=(1, 8, 8)),
    "Wan": Family("WAN21_T2V", {"image_model": "wan2.1", "model_type": "t2v", "dim": 128, "ffn_dim": 256, "num_heads": 1, "num_layers": 2, "text_dim": 128, "out_dim": 16, "in_dim": 16}, 128, None, (512, 512), size=(1, 8, 8)),
    "Flux 2": Family("Flux2", {**_FLUX, "image_model": "flux2", "in_channels": 128, "out_channels": 128, "axes_dim": [32] * 4, "theta": 2000, "patch_size": 1, "mlp_ratio": 3.0, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3], "vec_in_dim": None, "guidance_embed": True}, 4096, None, (100, 512)),
}  # fmt: skip


UNETS = {"SD15": Family("SD15", {}, 768), "SDXL": Family("SDXL", {}, 2048, 1280)}


def model(name: str, dtype=torch.float32, compute=None, seed: int = 0):
    """A patcher on a reduced model of the family, stored as `dtype` and computed in `compute` (None: the same)."""
    family = {**FAMILIES, **UNETS}[name]
    network = family.network or guidance_families.FAMILIES[name, "tiny"]
    return make(family.config, network, dtype, compute, seed)


def batch(name: str, patcher, seed: int = 3, rows: int = 2):
    """(latents, noise, prompts): random rows, the prompts as long as the family's differ."""
    family = {**FAMILIES, **UNETS}[name]
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    shape = (rows, patcher.model.latent_format.latent_channels, *family.size)
    lengths = [family.lengths[row % 2] for row in range(rows)]
    prompts = [(draw(1, length, family.width), draw(1, family.pooled) if family.pooled else None, dict(family.extras)) for length in lengths]
    return draw(*shape), draw(*shape), prompts


def make(config_name: str, network: dict, dtype=torch.float32, compute=None, seed: int = 0):
    """A patcher on the host's model of a configuration with random weights."""
    config = getattr(comfy("comfy.supported_models"), config_name)(dict(network))
    config.set_inference_dtype(dtype, compute)
    cpu = torch.device("cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        module = config.get_model({}, "", device=cpu)
        for key, value in module.diffusion_model.state_dict().items():
            if not value.is_floating_point():
                continue
            drawn = torch.randn(value.shape, generator=generator)
            if value.ndim < 2:
                value.copy_(drawn * 0.02 + (1.0 if value.ndim == 1 and "bias" not in key else 0.0))
            else:
                value.copy_(drawn * value[0].numel() ** -0.5)
        return comfy("comfy.model_patcher").CoreModelPatcher(module, load_device=cpu, offload_device=cpu)
