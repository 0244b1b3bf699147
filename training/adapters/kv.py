"""Full-rank training of cross-attention's K and V projections (Custom Diffusion, CVPR 2023; kept by ClassDiffusion)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...host import train_adapters
from .base import Adapter

CROSS_ATTENTION_KV = re.compile(r"\.attn2\.to_[kv]$")


class WeightDifference(Adapter):
    """Full-rank training of linear layers: each gets a float32 weight of its own, which starts as the base's.

    The layers cast per call, so a base in fp16, bf16 or fp8 trains in float32, too. `layers` is searched in "." + name.
    """

    def __init__(self, network: torch.nn.Module, layers: re.Pattern = CROSS_ATTENTION_KV, prefix: str = "diffusion_model.", device: torch.device | None = None):
        self._prefix, self._layers, self._base, self.parameters = prefix, {}, {}, {}
        for name, layer in network.named_modules():
            if layers.search("." + name) and getattr(layer, "weight", None) is not None:
                self.parameters[name] = torch.nn.Parameter(train_adapters.computed_weight(layer, device).clone())
                self._layers[name] = layer
        if not self.parameters:
            raise ValueError("This model has no cross-attention (attn2) K and V projections to train. Use a Stable Diffusion 1.x, 2.x or SDXL model.")
        self._attach()

    def lora(self) -> dict[str, torch.Tensor]:
        """`<prefix><layer>.diff` -> trained minus base."""
        with self.disabled():
            return {
                f"{self._prefix}{name}.diff": (parameter.detach() - train_adapters.computed_weight(self._layers[name], parameter.device)).cpu()
                for name, parameter in self.parameters.items()
            }

    @contextmanager
    def disabled(self) -> Iterator[None]:
        attached = bool(self._base)
        self.detach()
        try:
            yield
        finally:
            if attached:
                self._attach()

    def detach(self) -> None:
        for name, before in self._base.items():
            train_adapters.restore_weight(self._layers[name], before)
        self._base.clear()

    def _attach(self) -> None:
        for name, layer in self._layers.items():
            self._base[name] = train_adapters.set_weight(layer, self.parameters[name])
