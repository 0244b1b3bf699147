"""Custom Diffusion's layout in diffusers, which ClassDiffusion's authors publish in: the whole K and V weights of each cross-attention.

`<attention>.processor.to_k_custom_diffusion.weight` holds base + difference; `<attention>.processor` alone stands for an attention that
was not trained. diffusers' `load_attn_procs` counts on an entry for each attention of the model, so those are written as empty tensors,
which it reads like the empty dicts of the pickled form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

from .names import LayerNames, split

_KEY = re.compile(r"(?:unet\.)?(?P<attention>.+)\.processor\.to_(?P<part>[kv])_custom_diffusion\.weight")
_PUBLISHED = re.compile(r"(?P<layer>diffusion_model\..+\.attn2\.to_[kv])_custom_diffusion\.weight")  # on the published network (`delta.ckpt`)


def from_core(state: Mapping[str, torch.Tensor], names: LayerNames, base: Callable[[str], torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Core-named differences of cross-attention K and V -> the whole weights, float32 (a difference is finer than half precision can hold on top of a weight).

    ValueError where anything else was learned, or without the base model's weights.
    """
    if base is None:
        raise ValueError(
            "Custom Diffusion's layout holds whole weights. Connect the trained MODEL to Save Concept's input 'model', or set 'compress' to save a LoRA instead."
        )
    result: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        layer, part = split(key)
        attention, _, projection = names.diffusers.get(layer, "").removeprefix("unet.").rpartition(".")
        if part != "diff" or projection not in ("to_k", "to_v") or not attention.endswith(".attn2"):
            raise ValueError(
                f"Custom Diffusion's layout holds K and V of cross-attentions only, and {key!r} is something else. Save in the layout 'kohya' or 'comfyui'."
            )
        result[f"{attention}.processor.{projection}_custom_diffusion.weight"] = base(layer).float().cpu() + value.float().cpu()
    for layer, name in names.diffusers.items():  # K without V, or the other way round: diffusers replaces both
        attention, _, projection = name.removeprefix("unet.").rpartition(".")
        place = f"{attention}.processor"
        if projection not in ("to_k", "to_v") or not attention.endswith((".attn1", ".attn2")):
            continue
        if any(f"{place}.to_{part}_custom_diffusion.weight" in result for part in "kv"):
            if f"{place}.{projection}_custom_diffusion.weight" not in result:
                result[f"{place}.{projection}_custom_diffusion.weight"] = base(layer).float().cpu()
        else:
            result[place] = torch.zeros(0)
    return result


def to_core(state: Mapping[str, object], names: LayerNames, base: Callable[[str], torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Whole weights -> core-named differences to the base model's, float32. ValueError where they do not fit it, or when Q or the output was trained too."""
    if base is None:
        raise ValueError("A file in Custom Diffusion's layout can only be read for a model. Connect one.")
    layers = {name: layer for layer, name in names.diffusers.items()}
    result = {}
    for key, value in state.items():
        if not isinstance(value, torch.Tensor) or value.numel() == 0:
            continue
        match, published = _KEY.fullmatch(key), _PUBLISHED.fullmatch(key)
        if published:
            layer = published["layer"]
        elif match:
            layer = layers.get(f"unet.{match['attention']}.to_{match['part']}")
        else:
            raise ValueError(
                f"The weight {key!r} is not K or V of a cross-attention ('..._custom_diffusion.weight'). Only what Custom Diffusion trains by default can be read."
            )
        layer = layer if layer in names.shapes else None
        weight = None if layer is None else base(layer).float().cpu()
        if weight is None or weight.shape != value.shape:
            found = "has no such layer" if weight is None else f"has {list(weight.shape)} there"
            raise ValueError(
                f"The weight {key!r} {list(value.shape)} does not fit this model ({names.family}), which {found}. Load the kind of checkpoint that it was trained on."
            )
        result[f"{layer}.diff"] = value.float() - weight
    return result
