"""The host's layers and weight adapters, as training needs them: a layer's weight in float32, a weight of its own, adapters with our seed."""

from __future__ import annotations

from typing import Any

import comfy.ops
import comfy.weight_adapter
import torch

_HOW = ("comfy_cast_weights", "comfy_force_cast_weights", "layout_type", "weight_function")  # how a layer of the host takes its weight


def computed_weight(layer: torch.nn.Module, device: torch.device | None = None) -> torch.Tensor:
    """The weight that `layer` computes with, float32 on `device` (where it lies, if None): dequantised, and with the host's patches that are applied at each call."""
    weight, _ = comfy.ops.cast_bias_weight(layer, dtype=torch.float32, device=device or layer.weight.device, bias_dtype=torch.float32)
    return weight.detach().float()


def set_weight(layer: torch.nn.Module, weight: torch.nn.Parameter) -> dict:
    """Let `layer` (of a training copy) compute with `weight` itself, cast to the activations' dtype at each call. Returns what `restore_weight` needs."""
    before = {"weight": layer.weight, **{name: getattr(layer, name) for name in _HOW if hasattr(layer, name)}}
    layer.weight = weight
    layer.comfy_cast_weights, layer.weight_function = True, []
    if "layout_type" in before:  # a layer that may be quantised
        layer.comfy_force_cast_weights, layer.layout_type = True, None
    return before


def restore_weight(layer: torch.nn.Module, before: dict) -> None:
    """The layer as it was before `set_weight`."""
    for name, value in before.items():
        setattr(layer, name, value)
    if "layout_type" in before and "comfy_force_cast_weights" not in before:
        del layer.comfy_force_cast_weights


def create(kind: str, layer: torch.nn.Module, rank: int, alpha: float, seed: int) -> Any:
    """The host's trainable adapter `kind` (LoHa, LoKr, OFT) for `layer`, float32 on the CPU.

    Its start is a function of `seed` alone; the host itself would take it from the global random state, which stays as it was.
    Raises ValueError where the running host does not serve that kind.
    """
    known = getattr(comfy.weight_adapter, "adapter_maps", {})
    if kind not in known:
        raise ValueError(f"This ComfyUI has no trainable {kind} adapter; it has {', '.join(known) or 'none'}. Choose 'LoRA', or update ComfyUI.")
    stand_in = torch.empty(()).expand(layer.weight.shape)  # the host reads shape and device only
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        adapter = known[kind].create_train(stand_in, rank=rank, alpha=alpha)
    comfy.weight_adapter.BypassForwardHook(layer, adapter)  # tells the adapter the layer's geometry; nothing is injected
    adapter.requires_grad_(True)
    adapter.alpha.requires_grad_(False)  # a factor for the whole layer, which files carry as a constant
    return adapter


def trained_parameters(adapter: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters of one of the host's trainable adapters that are to be trained, under their names in files."""
    return {name: value for name, value in adapter.named_parameters() if value.requires_grad}
