"""The host's layers and trainable weight adapters: reading a layer's weight, replacing it for training, and seeded adapters."""

from __future__ import annotations

from typing import Any

import comfy.ops
import comfy.weight_adapter
import torch

# Attributes that control how a layer of the host reads its weight.
_WEIGHT_ATTRIBUTES = ("comfy_cast_weights", "comfy_force_cast_weights", "layout_type", "weight_function")


def computed_weight(layer: torch.nn.Module, device: torch.device | None = None) -> torch.Tensor:
    """The weight that `layer` computes with, float32: dequantized, with the patches that the host applies at each call.

    device  of the result; None = the weight's own
    """
    weight, _ = comfy.ops.cast_bias_weight(layer, dtype=torch.float32, device=device or layer.weight.device, bias_dtype=torch.float32)
    return weight.detach().float()


def set_weight(layer: torch.nn.Module, weight: torch.nn.Parameter) -> dict:
    """Make `layer` (of a training copy) compute with `weight`, cast to the activations' dtype at each call. Returns the attributes for `restore_weight`."""
    before = {"weight": layer.weight, **{name: getattr(layer, name) for name in _WEIGHT_ATTRIBUTES if hasattr(layer, name)}}
    layer.weight = weight
    layer.comfy_cast_weights, layer.weight_function = True, []
    if "layout_type" in before:  # a layer that may be quantized
        layer.comfy_force_cast_weights, layer.layout_type = True, None
    return before


def restore_weight(layer: torch.nn.Module, before: dict) -> None:
    """Undo `set_weight`, which returned `before`."""
    for name, value in before.items():
        setattr(layer, name, value)
    if "layout_type" in before and "comfy_force_cast_weights" not in before:
        del layer.comfy_force_cast_weights


def create_adapter(name: str, layer: torch.nn.Module, rank: int, alpha: float, seed: int) -> Any:
    """The host's trainable adapter `name` (LoHa, LoKr, OFT) for `layer`, float32 on the CPU: a module whose parameters depend on its kind.

    Its initial values depend on `seed` only; the global random state, from which the host would draw them, does not change.
    Raises ValueError if the running host has no such adapter.
    """
    known = getattr(comfy.weight_adapter, "adapter_maps", {})
    if name not in known:
        raise ValueError(f"This ComfyUI has no trainable {name} adapter; it has {', '.join(known) or 'none'}. Choose 'LoRA', or update ComfyUI.")
    stand_in = torch.empty(()).expand(layer.weight.shape)  # the host reads only its shape and device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        adapter = known[name].create_train(stand_in, rank=rank, alpha=alpha)
    comfy.weight_adapter.BypassForwardHook(layer, adapter)  # sets the layer's geometry on the adapter; nothing is injected
    adapter.requires_grad_(True)
    adapter.alpha.requires_grad_(False)  # a constant of the layer in adapter files
    return adapter


def trained_parameters(adapter: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trained parameters of one of the host's adapters, under their names in files."""
    return {name: value for name, value in adapter.named_parameters() if value.requires_grad}
