"""Custom Diffusion's layout in diffusers, also used by ClassDiffusion's authors: the whole K and V weights of each cross-attention.

`<attention>.processor.to_k_custom_diffusion.weight` holds base + difference. `<attention>.processor` alone marks an attention that was not
trained: diffusers' `load_attn_procs` expects an entry for each attention of the model. These entries are written as empty tensors, which
it reads like the empty dicts of the pickled form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

from .names import LayerNames, split

_KEY = re.compile(r"(?:unet\.)?(?P<attention>.+)\.processor\.to_(?P<part>[kv])_custom_diffusion\.weight")
_PUBLISHED = re.compile(r"(?P<layer>diffusion_model\..+\.attn2\.to_[kv])_custom_diffusion\.weight")  # the layer names of the authors' first code (`delta.ckpt`)


def from_core(state: Mapping[str, torch.Tensor], names: LayerNames, base: Callable[[str], torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Core-named differences of cross-attention K and V -> the whole weights, float32 (half precision would round the difference away).

    ValueError for any other difference, or without the base model's weights.
    """
    if base is None:
        raise ValueError(
            "Custom Diffusion's layout holds whole weights. "
            "Connect the trained MODEL to Save Concept's input 'model', or set 'compress' to save a LoRA instead."
        )
    result: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        layer, part = split(key)
        attention, _, projection = names.diffusers.get(layer, "").removeprefix("unet.").rpartition(".")
        if part != "diff" or projection not in ("to_k", "to_v") or not attention.endswith(".attn2"):
            raise ValueError(
                f"Custom Diffusion's layout holds K and V of cross-attentions only, and {key!r} is neither. Save in the layout 'kohya' or 'comfyui'."
            )
        result[f"{attention}.processor.{projection}_custom_diffusion.weight"] = base(layer).float().cpu() + value.float().cpu()
    for layer, name in names.diffusers.items():  # K without V, or V without K: diffusers replaces both
        attention, _, projection = name.removeprefix("unet.").rpartition(".")
        processor = f"{attention}.processor"
        if projection not in ("to_k", "to_v") or not attention.endswith((".attn1", ".attn2")):
            continue
        if any(f"{processor}.to_{part}_custom_diffusion.weight" in result for part in "kv"):
            if f"{processor}.{projection}_custom_diffusion.weight" not in result:
                result[f"{processor}.{projection}_custom_diffusion.weight"] = base(layer).float().cpu()
        else:
            result[processor] = torch.zeros(0)
    return result


def to_core(state: Mapping[str, object], names: LayerNames, base: Callable[[str], torch.Tensor] | None) -> dict[str, torch.Tensor]:
    """Whole weights -> core-named differences to the base model's, float32. ValueError if they do not fit it, or if other weights than K and V were trained."""
    if base is None:
        raise ValueError("A file in Custom Diffusion's layout holds whole weights, so it can only be loaded for a model. Connect one.")
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
                f"The weight {key!r} is not K or V of a cross-attention ('..._custom_diffusion.weight'). "
                "Only the weights that Custom Diffusion trains by default can be loaded."
            )
        layer = layer if layer in names.shapes else None
        weight = None if layer is None else base(layer).float().cpu()
        if weight is None or weight.shape != value.shape:
            mismatch = "has no such layer" if weight is None else f"has {list(weight.shape)} there"
            raise ValueError(
                f"The weight {key!r} {list(value.shape)} does not fit this model ({names.family}), which {mismatch}. "
                "Load a checkpoint of the family that it was trained on."
            )
        result[f"{layer}.diff"] = value.float() - weight
    return result
