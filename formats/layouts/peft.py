"""diffusers' layout of a LoRA, in PEFT's names: `unet.<layer>.lora_A.weight` (down) and `lora_B.weight` (up).

PEFT keeps alpha in a configuration, not in a tensor, and older readers assume alpha = rank. So the factor alpha / rank is multiplied into
`lora_B`, and the configuration (metadata `lora_adapter_metadata`) sets alpha = rank: every reader applies the same strength.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import torch

from . import peft_config
from .names import LayerNames, as_convolution, by_layer

_LORA = {"lora_up.weight", "lora_down.weight", "alpha"}


def from_core(state: Mapping[str, torch.Tensor], names: LayerNames) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Core-named LoRA -> (PEFT's state, metadata). ValueError for other adapters and for layers that diffusers does not have."""
    result, ranks = {}, {}
    for layer, parts in by_layer(state).items():
        if not {"lora_up.weight", "lora_down.weight"} <= parts.keys() or not parts.keys() <= _LORA:
            tensors = ", ".join(sorted(parts.keys() - _LORA)) or ", ".join(parts)
            raise ValueError(f"diffusers' layout holds LoRA only, and the layer {layer!r} was learned as {tensors}. Save in the layout 'kohya' or 'comfyui'.")
        parts = as_convolution(parts, names.shapes.get(layer))
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        rank = down.shape[0]
        if "alpha" in parts and float(parts["alpha"]) != rank:
            up = up * (float(parts["alpha"]) / rank)
        for name, rows in _diffusers_layers(layer, names):
            result[f"{name}.lora_A.weight"] = down
            result[f"{name}.lora_B.weight"] = up if rows is None else up[rows[0] : rows[0] + rows[1]].contiguous()
            ranks[name] = rank
    return result, {peft_config.KEY: json.dumps(_lora_config(ranks), sort_keys=True)}


def _diffusers_layers(layer: str, names: LayerNames) -> list[tuple[str, tuple[int, int] | None]]:
    """[(diffusers' layer, (first row, rows) of core's `layer`, or None for all rows)]. ValueError if there is none."""
    if layer in names.diffusers:
        return [(names.diffusers[layer], None)]
    if layer in names.split:
        return [(name, (first, rows)) for name, first, rows in names.split[layer]]
    raise ValueError(
        f"The layer {layer!r} of this {names.family} model has no counterpart in diffusers, so it cannot be saved in this layout. "
        "Save in the layout 'kohya' or 'comfyui'."
    )


def _lora_config(ranks: dict[str, int]) -> dict[str, object]:
    """PEFT's LoraConfig of each part of the pipeline, with keys prefixed as in diffusers (`unet.r`)."""
    result: dict[str, object] = {}
    for component in dict.fromkeys(name.partition(".")[0] for name in ranks):
        # PEFT matches names by their end. CLIP's layers are inside a `text_model` or not, depending on the version of transformers.
        own = {name.partition(".")[2].removeprefix("text_model."): rank for name, rank in ranks.items() if name.partition(".")[0] == component}
        usual = Counter(own.values()).most_common(1)[0][0]
        pattern = {name: rank for name, rank in own.items() if rank != usual}
        settings = {"r": usual, "lora_alpha": usual, "rank_pattern": pattern, "alpha_pattern": pattern, "target_modules": sorted(own)}
        result |= {f"{component}.{key}": value for key, value in settings.items()}
    return result
