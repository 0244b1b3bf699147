"""Every family that guidance declares a row layout for, and those that it must not batch: reduced, with two prompts that the host puts into one batch."""

from __future__ import annotations

import torch

from . import diffusion_families as families
from .diffusion_families import Family

_COSMOS = {
    "max_img_h": 240,
    "max_img_w": 240,
    "max_frames": 128,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 128,
    "num_blocks": 2,
    "num_heads": 2,
    "crossattn_emb_channels": 128,
    "concat_padding_mask": True,
    "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop",
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
}
_SVD = {
    "image_size": 32,
    "use_checkpoint": False,
    "legacy": False,
    "model_channels": 64,
    "in_channels": 8,
    "out_channels": 4,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 4,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "context_dim": 128,
    "num_classes": "sequential",
    "adm_in_channels": 768,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "video_kernel_size": [3, 1, 1],
    "extra_ff_mix_layer": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
}
_HIDREAM = {
    "image_model": "hidream",
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 1,
    "caption_channels": [64, 64],
    "text_emb_dim": 64,
    "num_routed_experts": 4,
    "num_activated_experts": 2,
    "axes_dims_rope": [64, 32, 32],
    "max_resolution": [128, 128],
    "llama_layers": [0, 1],
}
MORE = {
    "Cosmos 1": Family(
        "CosmosT2V",
        {**_COSMOS, "image_model": "cosmos", "block_config": "FA-CA-MLP", "block_x_format": "THWBD", "affline_emb_norm": True, "pos_emb_learnable": False, "extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"},
        128,
        size=(2, 8, 8),
    ),
    "Cosmos Predict2": Family(
        "CosmosT2IPredict2",
        {**_COSMOS, "image_model": "cosmos_predict2", "pos_emb_learnable": True, "min_fps": 1, "max_fps": 30, "extra_per_block_abs_pos_emb": False},
        128,
        size=(1, 8, 8),
    ),
    "LTXV": Family(
        "LTXV",
        {"image_model": "ltxv", "cross_attention_dim": 128, "attention_head_dim": 64, "num_attention_heads": 2, "caption_channels": 96, "num_layers": 2},
        96,
        size=(2, 4, 4),
        extras={"attention_mask": torch.zeros(1, 1, 77)},  # as the network adds it: nothing is masked
    ),
    "HiDream": Family("HiDream", _HIDREAM, 64, 64, extras={"conditioning_llama3": torch.ones(1, 2, 20, 64)}),
    "SVD": Family("SVD_img2vid", _SVD, 128),
}  # fmt: skip
ALL = {**families.FAMILIES, **families.UNETS, **MORE}


def model(name: str, seed: int = 0):
    """A patcher on a reduced model of the family."""
    if name in MORE:
        return families.make(MORE[name].config, MORE[name].network, seed=seed)
    return families.model(name, seed=seed)


def prompts(name: str, seed: int = 3):
    """Two conditionings of one length, so that the host batches them."""
    family, generator = ALL[name], torch.Generator().manual_seed(seed)
    pooled = family.pooled or (768 if family.config in ("Chroma", "Flux2") else None)  # older hosts ask these two for it, too

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    def one():
        extras = {key: value * draw(*value.shape) if key.startswith("conditioning") else value for key, value in family.extras.items()}
        return [[draw(1, family.lengths[0], family.width), {**({"pooled_output": draw(1, pooled)} if pooled else {}), **extras}]]

    return one(), one()


def latent(name: str, patcher, rows: int = 2) -> dict:
    """An empty latent of the family's size."""
    return {"samples": torch.zeros(rows, patcher.model.latent_format.latent_channels, *ALL[name].size)}
