"""DoRA (Liu et al., 2024): W' = m (W + s up down) / |W + s up down|, s = alpha / rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ...host import train_adapters
from . import lora


class Kind(lora.Kind):
    """A LoRA with a magnitude for each INPUT channel: y = (W + s up down)(c x) with c = m / |W + s up down|.

    DoRA files may hold the magnitude of inputs or of outputs. The host's loader takes the output norm from W alone, which is not DoRA,
    so this kind uses inputs (LyCORIS's `wd_on_output=False`). The norm is a constant in the backward pass (section 4.3).
    """

    def __init__(self, layer, rank, alpha, generator, device):
        super().__init__(layer, rank, alpha, generator, device)
        self.magnitude = torch.nn.Parameter(self._norm())
        self.parameters["dora_scale"] = self.magnitude

    def input(self, x: Tensor) -> Tensor:
        scale = self.magnitude / self._norm()
        return (x * (scale if scale.ndim == 4 else scale[0])).to(x.dtype)

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """[1, in] or [1, in, 1, 1]: the length of each input channel's weights; never zero."""
        weight = train_adapters.computed_weight(self.layer, self.up.device)
        with torch.autocast(weight.device.type, enabled=False):
            weight = weight + self.scale * (self.up.flatten(1) @ self.down.flatten(1)).view_as(weight)
        dims = [dim for dim in range(weight.ndim) if dim != 1]
        return torch.linalg.vector_norm(weight, dim=dims, keepdim=True) + torch.finfo(torch.float32).eps
