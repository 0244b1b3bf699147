"""How the layers of one model are called by core and by the others, and what may be stored of a layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

# What core's adapters read of a layer (LoRA, DoRA, LoHa, LoKr, OFT/BOFT, GLoRA, full differences), the longer names first.
_PART = re.compile(
    r"(?P<layer>.+?)\.(?P<part>(?:lora_(?:up|down|mid)|[ab][12])\.weight|alpha|dora_scale|diff|diff_b|set_weight|reshape_weight|w_norm|b_norm"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale)"
)


@dataclass(frozen=True)
class LayerNames:
    """The layers of one model, by core's name without `.weight` (`diffusion_model.middle_block.1.proj_in`).

    family     as people know it, for messages
    kohya      core's name -> kohya's (`lora_unet_mid_block_attentions_0_proj_in`)
    diffusers  core's name -> diffusers' with the part of the pipeline in front (`unet.mid_block.attentions.0.proj_in`);
               only layers that are one and the same there
    split      core's name -> the rows of it that are layers of their own in diffusers: [(name, first row, rows)]
    shapes     core's name -> the shape of its weight, of convolutions at least
    """

    family: str
    kohya: Mapping[str, str]
    diffusers: Mapping[str, str]
    split: Mapping[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)


def split(key: str) -> tuple[str, str]:
    """(layer, part) of a key: `x.y.lora_up.weight` -> (`x.y`, `lora_up.weight`); part "" for a key that belongs to no adapter."""
    match = _PART.fullmatch(key)
    return (match["layer"], match["part"]) if match else (key, "")


def by_layer(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Layer -> part -> tensor, in the order of the state. ValueError for a key that belongs to no adapter."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        layer, part = split(key)
        if not part:
            raise ValueError(f"The weight {key!r} belongs to no adapter that other tools know. Save in the layout 'comfyui'.")
        layers.setdefault(layer, {})[part] = value
    return layers


def as_convolution(parts: Mapping[str, torch.Tensor], shape: torch.Size | None) -> dict[str, torch.Tensor]:
    """`parts` with a LoRA's flat factors in the shapes of the convolutions that other tools make of them: down [r, in, *kernel], up [out, r, 1, ...]."""
    parts = dict(parts)
    if shape is None or len(shape) < 3 or "lora_down.weight" not in parts or "lora_mid.weight" in parts:
        return parts
    ones = (1,) * (len(shape) - 2)
    if parts["lora_down.weight"].ndim == 2:
        parts["lora_down.weight"] = parts["lora_down.weight"].reshape(-1, *shape[1:])
    if parts["lora_up.weight"].ndim == 2:
        parts["lora_up.weight"] = parts["lora_up.weight"].reshape(*parts["lora_up.weight"].shape, *ones)
    return parts
