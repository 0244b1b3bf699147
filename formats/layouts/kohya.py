"""kohya's layout, which LyCORIS, A1111, core and diffusers also read: layer names without dots, and core's names of an adapter's tensors.

`lora_unet_` + the layer's name with `_` for `.`. Stable Diffusion 1.x and 2.x use diffusers' layer names, all other families their own.
Text encoders: `lora_te_`, or `lora_te1_`, `lora_te2_` ... if a family has several.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .names import LayerNames, as_convolution, by_layer, without_bound


def from_core(state: Mapping[str, torch.Tensor], names: LayerNames) -> dict[str, torch.Tensor]:
    """Core-named state -> kohya's. Each LoRA gets an `alpha`, which kohya's tools expect. ValueError for a layer without a name in this layout."""
    result = {}
    for layer, parts in by_layer(state).items():
        name = names.kohya.get(layer)
        if name is None:
            raise ValueError(
                f"The layer {layer!r} has no name in kohya's layout for {names.family}. Save in the layout 'comfyui', or train without that layer."
            )
        parts = as_convolution(parts, names.shapes.get(layer))
        if "lora_down.weight" in parts and "alpha" not in parts:
            parts["alpha"] = torch.tensor(float(parts["lora_down.weight"].shape[0]))
        if "oft_blocks" in parts and "alpha" in parts:
            parts = without_bound(parts, float(parts["alpha"]))
        result |= {f"{name}.{part}": value for part, value in parts.items()}
    return result
