"""Full-rank training of cross-attention's K and V projections (Custom Diffusion, CVPR 2023; kept by ClassDiffusion)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...host import families, train_adapters
from .base import Adapter, Hooked
from .side import on_token_rows

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


class TokenRowsDifference(Hooked):
    """A full-rank difference of each K and V projection that acts on the token's rows of the text alone (`formats.token_rows`).

    It starts at zero, in float32. The gradient comes from a few rows, so a step costs less than one of `WeightDifference`.
    """

    def __init__(self, network: torch.nn.Module, prefix: str = "diffusion_model.", device: torch.device | None = None):
        super().__init__()
        self._prefix, self.parameters = prefix, {}
        for name, layer in network.named_modules():
            if families.is_text_layer(network, name) and getattr(layer, "weight", None) is not None:
                self.parameters[name] = torch.nn.Parameter(torch.zeros_like(train_adapters.computed_weight(layer, device)))
                self._hooks.append(layer.register_forward_hook(functools.partial(self._output, self.parameters[name])))
        if not self.parameters:
            raise ValueError(
                f"It is not known which rows of {type(network).__name__}'s text belong to a token, so nothing can be learned on them alone. Set rows to 'all'."
            )

    def lora(self) -> dict[str, torch.Tensor]:
        """`<prefix><layer>.diff`."""
        return {f"{self._prefix}{name}.diff": parameter.detach().cpu().clone() for name, parameter in self.parameters.items()}

    def _output(self, difference: torch.nn.Parameter, layer, arguments, output):
        if not self._enabled:
            return None
        return on_token_rows(arguments[0], output, lambda x, y: y + torch.nn.functional.linear(x, difference.to(x.dtype)))
