"""Models of other families, of the host's own classes, with random weights and without a file: tiny for tests, of full size for benches."""

from __future__ import annotations

import torch

from .guidance_models import comfy

_COMMON = {
    "use_checkpoint": False,
    "image_size": 32,
    "out_channels": 4,
    "in_channels": 4,
    "use_spatial_transformer": True,
    "legacy": False,
    "model_channels": 320,
}
_SD15 = {**_COMMON, "context_dim": 768, "num_heads": 8, "use_linear_in_transformer": False}
_SDXL = {**_COMMON, "num_classes": "sequential", "adm_in_channels": 2816, "context_dim": 2048, "num_head_channels": 64, "use_linear_in_transformer": True}
_SD3 = {
    "in_channels": 16,
    "patch_size": 2,
    "input_size": None,
    "pos_embed_scaling_factor": None,
    "pos_embed_max_size": 192,
    "num_patches": 192 * 192,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
}
FAMILIES = {
    ("SD15", "full"): {
        **_SD15,
        "num_res_blocks": [2] * 4,
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 9 + [0] * 3,
    },
    ("SD15", "tiny"): {
        **_SD15,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1],
    },
    ("SD15", "narrow"): {  # two levels, so with down- and upsampling
        **_SD15,
        "model_channels": 32,
        "num_heads": 4,
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 2],
        "transformer_depth": [1, 1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1] * 4,
    },
    ("SDXL", "full"): {
        **_SDXL,
        "num_res_blocks": [2] * 3,
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
    ("SDXL", "tiny"): {
        **_SDXL,
        "num_res_blocks": [1],
        "channel_mult": [1],
        "transformer_depth": [1],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1],
    },
    ("SD3", "full"): {**_SD3, "depth": 24},
    ("SD3", "tiny"): {**_SD3, "depth": 2, "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 128}}},
}
_CONTEXT = {"SD15": (77, 768, None), "SDXL": (77, 2048, 1280), "SD3": (154, 4096, 2048)}


def random_model(family: str, size: str = "tiny", dtype=torch.float32, seed: int = 0):
    """A patcher on a model of the host's own class with random weights: SD15, SDXL, SD3 (a diffusion transformer), tiny or of full size."""
    management, models = comfy("comfy.model_management"), comfy("comfy.supported_models")
    config = getattr(models, family)(FAMILIES[family, size])
    config.set_inference_dtype(dtype, None)
    device = management.get_torch_device() if size == "full" else torch.device("cpu")
    generator = torch.Generator(device).manual_seed(seed)
    with torch.inference_mode():
        module = config.get_model({}, "", device=device)
        fill(module.diffusion_model, generator)
        offload = torch.device("cpu")
        return comfy("comfy.model_patcher").CoreModelPatcher(module, load_device=management.get_torch_device(), offload_device=offload)


def fill(network: torch.nn.Module, generator: torch.Generator) -> None:
    """Random weights whose layers keep the size of what passes through them; in inference mode."""
    for value in network.state_dict().values():
        if not value.is_floating_point():
            continue
        if value.ndim < 2:
            value.normal_(0, 0.02, generator=generator).add_(1.0 if value.ndim == 1 else 0.0)
        else:
            value.normal_(0, value[0].numel() ** -0.5, generator=generator)


def random_conditioning(family: str, seed: int):
    """A prompt's embeddings, as far as a random model is concerned."""
    length, width, pooled = _CONTEXT[family]
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, length, width, generator=generator), {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}]]
