"""LoHa (FedPara, Hyeon-Woo et al., 2021; LyCORIS): W' = W + s (a1 b1) * (a2 b2), elementwise, s = alpha / rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ...host import train_adapters
from .side import Side, add_low_rank, apply_weight


class Kind(Side):
    """The difference has a rank of up to rank squared.

    The two products are one LoRA of rank^2: (a1 . a2)(b1 . b2) with the products of all pairs of columns and of rows. Where that costs
    more than the difference itself, the difference is made. Starts as LyCORIS does (the host's own start gives means for deviations).
    """

    def __init__(self, layer, rank, alpha, generator, device):
        self.adapter = train_adapters.create_adapter("LoHa", layer, rank, alpha, seed=0)
        for value, deviation in ((self.adapter.hada_w1_a, 0.1), (self.adapter.hada_w2_a, 1.0), (self.adapter.hada_w2_b, 1.0)):
            torch.nn.init.normal_(value, std=deviation, generator=generator)
        self.adapter.to(device)
        self.parameters = train_adapters.trained_parameters(self.adapter)
        self.layer, self.alpha, self.scale = layer, alpha, alpha / rank
        shape = layer.weight.shape
        self.factored = rank**2 * (shape[0] + shape[1:].numel()) < shape.numel()

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        a1, b1, a2, b2 = (self.parameters[name] for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
        shape, scale = self.layer.weight.shape, self.scale
        if self.factored:
            up = (a1[:, :, None] * a2[:, None, :]).view(shape[0], -1, *[1] * (len(shape) - 2))
            down = (b1[:, None, :] * b2[None, :, :]).view(-1, *shape[1:])
            return add_low_rank(self.layer, x, y, down, up, scale)
        with torch.autocast(x.device.type, enabled=False):
            difference = self.adapter(a1.new_zeros(()).expand(shape))
        return y + apply_weight(self.layer, x, difference).to(y.dtype)
