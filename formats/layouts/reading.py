"""Conversion of other tools' adapters to core's names: PEFT, all versions of diffusers, kohya, LyCORIS and OneTrainer.

A layer is identified by its name (`LayerNames.find`), a tensor's part by its ending. PEFT keeps alpha in a configuration (`peft_config`),
which is converted to core's `alpha`. Keys of unknown layers stay unchanged, because core's loader knows more of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from . import peft_config
from .names import LayerNames, Loaded, split, without_bound

_WRAPPER = re.compile(r"(^|\.)base_model\.model\.")  # PEFT's own model around the trained one
# Keys of older PEFT contain the name of the adapter (`default`).
_PARTS = (
    (re.compile(r"(.+)\.lora_A(?:\.[^.]+)?\.weight"), "lora_down.weight"),
    (re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.weight"), "lora_up.weight"),
    (re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.bias"), "bias"),
    (re.compile(r"(.+)\.lora_magnitude_vector(?:\.[^.]+)*"), "magnitude"),
    (re.compile(r"(.+?)(?:\.lora|_lora|\.lora_linear_layer)\.down\.weight"), "lora_down.weight"),  # diffusers before PEFT
    (re.compile(r"(.+?)(?:\.lora|_lora|\.lora_linear_layer)\.up\.weight"), "lora_up.weight"),
)
_COMPONENT = re.compile(r"(unet|transformer(?:_\d+)?|text_encoder(?:_\d+)?)\.")
_MISSING = (
    "The file 'adapter_config.json', in which PEFT keeps the strength of a LoRA (lora_alpha), is missing beside this one, so alpha = rank is assumed. "
    "Load the whole folder that PEFT wrote."
)


def to_core(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], names: LayerNames) -> Loaded:
    """The state under core's names, with the scale from PEFT's configuration in `metadata` as `alpha`.

    ValueError for a configuration with unsupported options, and for a text encoder's layer if a family has several encoders and the file
    does not name one.
    """
    settings = peft_config.read(metadata)
    result: dict[str, torch.Tensor] = {}
    layers: dict[str, dict[str, tuple[str, torch.Tensor]]] = {}
    notes = []
    for key, value in state.items():
        name, part = _split(key)
        if part:
            layers.setdefault(name, {})[part] = key, value
        else:
            result[key] = value
    for name, parts in layers.items():
        plain = _WRAPPER.sub(r"\1", name).replace(".processor.", ".")
        component = match[1] if (match := _COMPONENT.match(plain)) else ""
        own = settings.get(component, settings.get(""))
        layer = names.find(plain) or names.piece(plain)  # core's table contains the pieces, too, under diffusers' names
        if layer is None and plain != name:  # PEFT around a network with the host's structure
            layer = next((core for core in (f"diffusion_model.{plain}", f"diffusion_model.{plain.partition('.')[2]}") if core in names.shapes), None)
        if own is None and _WRAPPER.search(name) and "alpha" not in parts and _MISSING not in notes:
            notes.append(_MISSING)
        tensors = {part: value for part, (_, value) in parts.items()}
        if own is not None and "alpha" not in tensors:
            tensors = _scaled(tensors, own, plain.removeprefix(f"{component}.") if component else plain)
        if "magnitude" in tensors:
            tensors["dora_scale"] = _over_outputs(tensors.pop("magnitude"), None if layer is None else names.shapes.get(layer))
        if "bias" in tensors and (layer is not None or own is not None):
            tensors["diff_b"] = tensors.pop("bias")
        if "oft_blocks" in tensors and "alpha" in tensors and layer is not None and name != layer:
            tensors = without_bound(tensors, float(tensors["alpha"]) * tensors["oft_blocks"].shape[-3:-1].numel())
        for part, value in tensors.items():
            known = layer is not None or part not in parts
            result[f"{layer or name}.{part}" if known else parts[part][0]] = value
    return Loaded(result, notes)


def has_peft_wrapper(keys: Iterable[str]) -> bool:
    """Are these the keys of PEFT's own file, which has its configuration beside it?"""
    return any(_WRAPPER.search(key) for key in keys)


def _split(key: str) -> tuple[str, str]:
    """(layer, part) of a key; the part is core's name, `bias` or `magnitude`, or "" if the key belongs to no adapter."""
    name, part = split(key)
    if part:
        return name, part
    for pattern, part in _PARTS:
        if match := pattern.fullmatch(key):
            return match[1], part
    return key, ""


def _scaled(parts: dict[str, torch.Tensor], settings: peft_config.PeftSettings, name: str) -> dict[str, torch.Tensor]:
    """`parts` of the layer `name` with the configuration's scale applied."""
    parts = dict(parts)
    if "lora_down.weight" in parts:
        rank = parts["lora_down.weight"].shape[0]
        scale = settings.scale(name, rank)
        parts["alpha"] = torch.tensor(scale * rank)
        if "bias" in parts:
            parts["bias"] = parts["bias"] * scale
    elif "hada_w1_b" in parts:
        rank = parts["hada_w1_b"].shape[0]
        parts["alpha"] = torch.tensor(settings.scale(name, rank) * rank)
    elif first := next((part for part in ("lokr_w1", "lokr_w1_a") if part in parts), None):
        # PEFT always scales the whole product; core only if one of its factors is factored again.
        parts[first] = parts[first] * settings.scale(name)
    return parts


def _over_outputs(magnitude: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
    """PEFT's magnitude [out], or [1, out, 1, ...] of a convolution -> core's [out, 1, ...]."""
    dimensions = len(shape) if shape is not None else max(magnitude.ndim, 2)
    return magnitude.reshape(-1, *[1] * (dimensions - 1))
