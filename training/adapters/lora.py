"""LoRA (Hu et al., 2021): W' = W + (alpha / rank) up down."""

from __future__ import annotations

import torch
from torch import Tensor

from .side import Side, add_low_rank


class Kind(Side):
    """`down` starts Kaiming-uniform and `up` at zero, as in the paper and in all common trainers."""

    def __init__(self, layer, rank, alpha, generator, device):
        out, *rest = layer.weight.shape
        down = torch.empty(rank, *rest)
        torch.nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
        self.up = torch.nn.Parameter(torch.zeros(out, rank, *[1] * (len(rest) - 1), device=device))
        self.down = torch.nn.Parameter(down.to(device))
        self.parameters = {"lora_up.weight": self.up, "lora_down.weight": self.down}
        self.layer, self.alpha, self.scale = layer, alpha, alpha / rank

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        return add_low_rank(self.layer, x, y, self.down, self.up, self.scale)
