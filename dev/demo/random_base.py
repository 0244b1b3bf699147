"""A reduced SD 1.5 checkpoint with random weights, made on the spot by the host's own classes.

It draws nothing anybody would hang on a wall. It is there so that the whole way (load, train, save, sample) runs for real in seconds
on a processor, through the stock `CheckpointLoaderSimple`, which takes it for what its layout says: Stable Diffusion 1.5.
Needs the host's tree on `sys.path`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

# One level of SD 1.5's UNet: 25.8 million parameters, every kind of layer that the full one has.
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1],
    "channel_mult": [1],
    "transformer_depth": [1],
    "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "legacy": False,
    "dtype": torch.float32,
}


def write(path: Path, seed: int = 0, text_layers: int = 2, dtype: torch.dtype = torch.float16) -> Path:
    """Write the checkpoint to `path` (beside first, then renamed) and return it. The same seed gives the same weights.

    text_layers  of CLIP-L's 12 layers that do something; the others are exact identities (zero output projections), because the
                 stock loader insists on 12
    """
    import comfy.ops
    import comfy.taesd.taesd
    from comfy.clip_model import CLIPTextModel
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    operations = comfy.ops.disable_weight_init
    clip_config = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    }
    with torch.inference_mode(False), torch.no_grad():
        parts = {
            "model.diffusion_model.": UNetModel(**UNET, operations=operations),
            "cond_stage_model.transformer.": CLIPTextModel(clip_config, torch.float32, "cpu", operations),
            "first_stage_model.": comfy.taesd.taesd.TAESD(),
        }
        state: dict[str, torch.Tensor] = {}
        for prefix, module in parts.items():
            for name, parameter in module.named_parameters():
                state[prefix + name] = _initial(name, parameter, generator)
        for name in list(state):
            layer = name.partition("encoder.layers.")[2].partition(".")[0]
            if layer and int(layer) >= text_layers and (".out_proj." in name or ".mlp.fc2." in name):
                state[name] = torch.zeros_like(state[name])
        state["first_stage_model.vae_scale"] = torch.tensor(1.0)
        state["first_stage_model.vae_shift"] = torch.tensor(0.0)
        del state["cond_stage_model.transformer.text_projection.weight"]  # SD 1.5 files have none
        state = {name: value.to(dtype).contiguous() for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(state, beside)
    beside.replace(path)
    return path


def _initial(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """What the layers' own initialisers would give: the host's classes skip it, because they expect a checkpoint."""
    if parameter.ndim == 0:
        return torch.tensor(1.0)
    if parameter.ndim == 1:
        norm = name.endswith("weight")  # the weights of norms; all other vectors are biases
        return torch.ones(parameter.shape) if norm else torch.zeros(parameter.shape)
    if "embedding" in name:
        return torch.randn(parameter.shape, generator=generator) * (0.02 if "token" in name else 0.01)
    fan_in = parameter[0].numel()
    return torch.randn(parameter.shape, generator=generator) * fan_in**-0.5


if __name__ == "__main__":
    import sys

    import comfy.options

    destination = Path(sys.argv[1])
    sys.argv[1:] = ["--cpu"]  # the host reads its own options from here; it needs no card to make weights
    comfy.options.enable_args_parsing()
    write(destination)
