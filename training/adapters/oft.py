"""OFT (Qiu et al., 2023): W' = R W with a block-diagonal rotation R."""

from __future__ import annotations

import torch
from torch import Tensor

from ...host import train_adapters
from .side import Side, draw_seed


class Kind(Side):
    """The host's own adapter: the Cayley transform of a skew-symmetric generator, whose norm `alpha` bounds.

    On activations y = R (W x) + bias. The host's bypass form rotates the bias too, which its file form does not; this one does not.
    """

    def __init__(self, layer, rank, alpha, generator, device):
        self.adapter = train_adapters.create_adapter("OFT", layer, rank, alpha, draw_seed(generator)).to(device)
        self.parameters = train_adapters.trained_parameters(self.adapter)
        self.layer, self.alpha = layer, alpha

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        count, size, _ = self.adapter.oft_blocks.shape
        with torch.autocast(x.device.type, enabled=False):
            one = torch.eye(size, device=y.device)
            rotation = self.adapter(one.repeat(count, 1)).view(count, size, size) - one  # R - 1 of each block: small, so exact in half precision too
        bias = self.layer.bias
        if bias is None:
            return y + _rotate(rotation.to(y.dtype), y, self.layer.weight.ndim)
        bias = bias.detach().to(y.device, y.dtype).view(-1, *[1] * (self.layer.weight.ndim - 2))
        return y + _rotate(rotation.to(y.dtype), y - bias, self.layer.weight.ndim)


def _rotate(blocks: Tensor, y: Tensor, ndim: int) -> Tensor:
    """The blocks [count, size, size] on y's channels: the last of [..., out], the second of [n, out, h, w]."""
    if ndim == 4:
        return torch.einsum("kmn,bknhw->bkmhw", blocks, y.unflatten(1, blocks.shape[:2])).flatten(1, 2)
    return torch.einsum("kmn,...kn->...km", blocks, y.unflatten(-1, blocks.shape[:2])).flatten(-2)
