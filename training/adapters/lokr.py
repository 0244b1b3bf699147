"""LoKr (LyCORIS): W' = W + w1 (x) w2, a Kronecker product."""

from __future__ import annotations

import torch
from torch import Tensor

from ...host import train_adapters
from .side import Side, draw_seed


class Kind(Side):
    """The host's own adapter: its two factors are applied to the activations one after the other."""

    def __init__(self, layer, rank, alpha, generator, device):
        self.adapter = train_adapters.create_adapter("LoKr", layer, rank, alpha, draw_seed(generator)).to(device)
        self.parameters = train_adapters.trained_parameters(self.adapter)
        self.alpha = alpha

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.adapter.h(x if torch.is_autocast_enabled(x.device.type) else x.float(), y).to(y.dtype)
