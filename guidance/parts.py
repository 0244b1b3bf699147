"""The difference A = W' - W of one layer in parts. Each can be subtracted from the weight, or from the layer's output.

    W_w = W' + (omega - 1) A            one product of the factors, whatever the size of the image
    y_w = W' x + (omega - 1) A x        the factors on every position of the input, whatever the size of the layer

Both hold nothing but the factors. A piece that is a part of W' itself (what DoRA scales, what OFT turns) works on W' or on y alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..host.adapters import Hadamard, Kronecker, LowRank, Rotation, Scale

# A weight that is made anew is also written and read once more, and a convolution reorders it: in multiplications for each of its numbers.
PASSES, CONVOLUTION_PASSES = 16, 48


class Part:
    """One part of A. work: multiplications for one position of the input; cost: for the whole weight."""

    work = cost = 0

    def __init__(self, *tensors: torch.Tensor):
        self.tensors = tensors

    def to_weight(self, weight: torch.Tensor, scale: float) -> torch.Tensor:
        """A new weight: weight + scale * A."""
        raise NotImplementedError

    def to_output(self, y: torch.Tensor, x: torch.Tensor, scale: float, layer) -> None:
        """y += scale * A x in place: y [rows, ..., out] and x [rows, ..., in], or [rows, channels, *space] for a convolution."""
        raise NotImplementedError

    def of_bias(self, bias: torch.Tensor) -> torch.Tensor | None:
        """What `to_output` takes for a part of W' x, though it is the layer's bias: A b for a piece that works on y."""
        return None

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


class LowRankPart(Part):
    """A = up down, on all outputs or on the slice (start, length) of them; the kernel of a convolution is in `down`."""

    def __init__(self, up: torch.Tensor, down: torch.Tensor, rows: tuple[int, int] | None):
        super().__init__(up, down)
        self.rows = rows
        self.work, self.cost = up.numel() + down.numel(), up.shape[0] * down.numel()

    def to_weight(self, weight, scale):
        up, down = (tensor.to(weight) for tensor in self.tensors)
        if self.rows is None:
            return torch.addmm(weight.flatten(1), up, down.flatten(1), alpha=scale).view_as(weight)
        weight = weight.clone()
        weight.narrow(0, *self.rows).flatten(1).addmm_(up, down.flatten(1), alpha=scale)
        return weight

    def to_output(self, y, x, scale, layer):
        up, down = (tensor.to(x) for tensor in self.tensors)
        if down.ndim > 2 or is_convolution(layer):
            inner = layer._conv_forward(x, down, None)
            target = y.flatten(2)
            product = up.expand(len(y), -1, -1), inner.flatten(2)
            if target.dtype == x.dtype and target.data_ptr() == y.data_ptr():
                target.baddbmm_(*product, alpha=scale)
            else:
                y.add_(torch.bmm(*product).view_as(y), alpha=scale)
            return
        inner = F.linear(x, down)
        if self.rows is not None:
            y.narrow(-1, *self.rows).add_(F.linear(inner, up).to(y.dtype), alpha=scale)
        elif y.is_contiguous() and y.dtype == x.dtype:
            y.view(-1, y.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), up.t(), alpha=scale)
        else:
            y.add_(F.linear(inner, up).to(y.dtype), alpha=scale)


class KroneckerPart(Part):
    """A = w1 (x) w2: x seen as [in1, in2] becomes w1 X w2^T. The kernel of a convolution is in w2."""

    def __init__(self, w1: torch.Tensor, w2: torch.Tensor):
        super().__init__(w1, w2)
        self.work, self.cost = w1.shape[1] * w2.numel() + w1.numel() * w2.shape[0], w1.numel() * w2.numel()

    def to_weight(self, weight, scale):
        w1, w2 = (tensor.to(weight) for tensor in self.tensors)
        kernel = [1] * (w2.ndim - 2)
        seen = weight.view(w1.shape[0], w2.shape[0], w1.shape[1], w2.shape[1], *w2.shape[2:])
        return torch.addcmul(seen, w1.view(w1.shape[0], 1, w1.shape[1], 1, *kernel), w2.unsqueeze(1).unsqueeze(0), value=scale).view_as(weight)

    def to_output(self, y, x, scale, layer):
        w1, w2 = (tensor.to(x) for tensor in self.tensors)
        if is_convolution(layer):
            inner = layer._conv_forward(x.reshape(-1, w2.shape[1], *x.shape[2:]), w2, None)  # [rows in1, out2, *space]
            inner = inner.reshape(len(x), w1.shape[1], -1)
            y.add_(torch.matmul(w1, inner).view_as(y), alpha=scale)
        else:
            inner = F.linear(x.unflatten(-1, (w1.shape[1], w2.shape[1])), w2)  # [..., in1, out2]
            y.add_(torch.matmul(w1, inner).flatten(-2), alpha=scale)


class HadamardPart(Part):
    """A = (a1 b1) * (a2 b2), elementwise; the factor is in a1."""

    def __init__(self, a1: torch.Tensor, b1: torch.Tensor, a2: torch.Tensor, b2: torch.Tensor):
        super().__init__(a1, b1, a2, b2)
        size = a1.shape[0] * b1.shape[1]
        self.cost = (a1.shape[1] + a2.shape[1]) * size
        self.work = size  # its product is made for the occasion

    def to_weight(self, weight, scale):
        a1, b1, a2, b2 = (tensor.to(weight) for tensor in self.tensors)
        return torch.addcmul(weight.flatten(1), a1 @ b1, a2 @ b2, value=scale).view_as(weight)

    def to_output(self, y, x, scale, layer):
        a1, b1, a2, b2 = (tensor.to(x) for tensor in self.tensors)
        product = (a1 @ b1).mul_(a2 @ b2)
        if is_convolution(layer):
            y.add_(layer._conv_forward(x, product.view(len(product), x.shape[1], *layer.kernel_size), None), alpha=scale)
        else:
            y.add_(F.linear(x, product), alpha=scale)


class ScalePart(Part):
    """A = diag(v) W': each output of its own share."""

    def __init__(self, v: torch.Tensor):
        super().__init__(v)
        self.work = self.cost = len(v)

    def to_weight(self, weight, scale):
        return weight * (1 + scale * self.tensors[0]).to(weight).view(-1, *[1] * (weight.ndim - 1))

    def to_output(self, y, x, scale, layer):
        y.mul_(by_channel(1 + scale * self.tensors[0], y, layer))

    def of_bias(self, bias):
        return self.tensors[0] * bias


class TurnPart(Part):
    """A = blocks W', with `blocks` [n, b, b] along the outputs."""

    def __init__(self, blocks: torch.Tensor, columns: int):
        super().__init__(blocks)
        self.work, self.cost = 4 * blocks.numel(), blocks.numel() * columns  # many small products along the positions are slow

    def to_weight(self, weight, scale):
        blocks = self.tensors[0].to(weight)
        seen = weight.reshape(len(blocks), blocks.shape[1], -1)
        return torch.baddbmm(seen, blocks, seen, alpha=scale).view_as(weight)

    def to_output(self, y, x, scale, layer):
        blocks = self.tensors[0].to(y)
        if is_convolution(layer):
            seen = y.reshape(len(y), len(blocks), blocks.shape[1], -1)
            y.add_(torch.matmul(blocks, seen).view_as(y), alpha=scale)
        else:
            seen = y.reshape(-1, len(blocks), blocks.shape[1]).transpose(0, 1)  # [n, positions, b]
            y.add_(torch.bmm(seen, blocks.transpose(1, 2)).transpose(0, 1).reshape(y.shape), alpha=scale)

    def of_bias(self, bias):
        blocks = self.tensors[0]
        return torch.matmul(blocks, bias.view(len(blocks), -1, 1)).flatten()


def factored(layer: torch.nn.Module, terms, shape, place: dict) -> list[Part] | None:
    """The pieces of A for `layer`, those on W' itself first; None where a weight of its own is smaller, or the only way.

    `place`: device and dtype of the pieces.
    """
    convolution = is_convolution(layer)
    if isinstance(layer, torch.nn.Embedding) or len(shape) < 2 or not (convolution or isinstance(layer, torch.nn.Linear) or len(shape) == 2):
        return None
    if convolution and layer.groups != 1:
        return None
    if any(not isinstance(term, (LowRank, Kronecker, Hadamard, Scale, Rotation)) or (convolution and getattr(term, "rows", None)) for _, term in terms):
        return None
    if sum(term.numel() for _, term in terms) >= math.prod(shape):
        return None
    return [*_multiplied(terms, shape, place), *_low_rank(terms, place), *_others(terms, place)]


def _multiplied(terms, shape, place) -> list[Part]:
    exact = {**place, "dtype": torch.float32}  # vectors and small blocks
    found = [ScalePart((term.v * factor).to(**exact)) for factor, term in terms if isinstance(term, Scale)]
    return [*found, *(TurnPart((term.blocks * factor).to(**place), math.prod(shape[1:])) for factor, term in terms if isinstance(term, Rotation))]


def _low_rank(terms, place) -> list[Part]:
    """LoRAs stacked on one layer are one LoRA of the sum of their ranks."""
    low, parts = [(factor, term) for factor, term in terms if isinstance(term, LowRank)], []
    for rows in dict.fromkeys(term.rows for _, term in low):
        same = [(factor, term) for factor, term in low if term.rows == rows]
        up = torch.cat([term.up.to(device=place["device"], dtype=torch.float32) * factor for factor, term in same], dim=1).to(**place)
        parts.append(LowRankPart(up, torch.cat([term.down.to(**place) for _, term in same]), rows))
    return parts


def _others(terms, place) -> list[Part]:
    parts = []
    for factor, term in terms:
        if isinstance(term, Kronecker):
            parts.append(KroneckerPart(_times(term.w1, factor, place), term.w2.to(**place)))
        elif isinstance(term, Hadamard):
            rest = (tensor.to(**place) for tensor in (term.b1, term.a2, term.b2))
            parts.append(HadamardPart(_times(term.a1, factor, place), *rest))
    return parts


def _times(tensor: torch.Tensor, factor: float, place: dict) -> torch.Tensor:
    return (tensor.to(device=place["device"], dtype=torch.float32) * factor).to(**place)


def pays(parts: list[Part], layer, x: torch.Tensor, rows: int) -> bool:
    """Are fewer multiplications needed to make the weak weight than to correct the output for `rows` rows of `x`?"""
    if is_convolution(layer):
        positions, passes = math.prod(x.shape[2:]) // math.prod(layer.stride), CONVOLUTION_PASSES
    else:
        positions, passes = math.prod(x.shape[1:-1]), PASSES
    return rows * positions * sum(part.work for part in parts) > sum(part.cost for part in parts) + passes * layer.weight.numel()


def is_convolution(layer) -> bool:
    return hasattr(layer, "_conv_forward")


def by_channel(v: torch.Tensor, y: torch.Tensor, layer) -> torch.Tensor:
    return v.to(y).view(-1, *[1] * (y.ndim - 2)) if is_convolution(layer) else v.to(y)
