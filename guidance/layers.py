"""One layer with two weights: the tuned one for the strong rows of a batch, the interpolated one for the weak rows.

    W_w = omega W' + (1 - omega) W = W' - (1 - omega) A        W' tuned, W base, A = W' - W

The host has W' in the layer already. So where A has small factors, the weak rows are computed with W' like all others and
(1 - omega) A x is taken off (`Correction`); otherwise the weak rows get a layer with W_w of their own (`SecondWeight`).
Both are the layer's `forward` during a sampling run and leave no trace after it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..host import patcher as host
from ..host.adapters import Kronecker, LowRank


class Rows:
    """Which rows of the running batch are weak, and how weak: set before each forward, read by every layer in it."""

    def __init__(self, omega: float):
        self.omega = omega
        self.spans: tuple[tuple[int, int], ...] = ()
        self.total = 0

    def set(self, spans, total: int) -> None:
        self.spans, self.total = tuple(spans), total

    def of(self, x: torch.Tensor) -> tuple[tuple[int, int], ...]:
        """The weak spans of `x`, whose first dimension is the batch or batch-major multiples of it (frames, windows)."""
        n = x.shape[0]
        if not self.spans or n == self.total:
            return self.spans
        if len(self.spans) == 1 and self.spans[0] == (0, self.total):
            return ((0, n),)
        if n % self.total:
            raise RuntimeError(
                f"A layer was given {n} rows in a batch of {self.total}, so Personalization Guidance cannot tell the weak rows from the others. "
                "Another node reorders or splits the batch inside this model: remove it, or use plain CFG."
            )
        k = n // self.total
        return tuple((start * k, stop * k) for start, stop in self.spans)


class Correction:
    """forward(x) of the tuned layer, less (1 - omega) A x on the weak rows."""

    def __init__(self, rows: Rows, original, parts: list, bias: torch.Tensor | None):
        self.rows, self.original, self.parts, self.bias, self.ran = rows, original, parts, bias, False

    def __call__(self, x, *args, **kwargs):
        y = self.original(x, *args, **kwargs)
        spans = self.rows.of(x)
        if spans:
            scale = self.rows.omega - 1.0
            self.ran = True
            for start, stop in spans:
                weak_x, weak_y = host.plain(x[start:stop]), y[start:stop]
                for part in self.parts:
                    part.add_to(weak_y, weak_x, scale)
                if self.bias is not None:
                    bias = self.bias.to(weak_y)
                    weak_y.add_(bias.view(-1, *[1] * (y.ndim - 2)) if _channels_second(self.original) else bias, alpha=scale)
        return y


class SecondWeight:
    """forward(x) of the tuned layer for the strong rows, of a layer with other weights for the weak rows."""

    def __init__(self, rows: Rows, original, layer: torch.nn.Module):
        self.rows, self.original, self.layer, self.ran = rows, original, layer, False

    def __call__(self, x, *args, **kwargs):
        spans = self.rows.of(x)
        if not spans:
            return self.original(x, *args, **kwargs)
        self.ran = True
        pieces, at = [], 0
        for start, stop in spans:
            if start > at:
                pieces.append(self.original(x[at:start], *args, **kwargs))
            pieces.append(self.layer(host.plain(x[start:stop]), *args, **kwargs))
            at = stop
        if at < x.shape[0]:
            pieces.append(self.original(x[at:], *args, **kwargs))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


class SecondDelta:
    """forward(x) of the tuned layer, plus (omega - 1) times a layer with A for its weight on the weak rows.

    Dearer than `SecondWeight` by one product on the weak rows, but right while the tuned weight itself changes (conditioning hooks)
    or omega does. Linear, convolution, norm and embedding layers are all linear in weight and bias together.
    """

    def __init__(self, rows: Rows, original, layer: torch.nn.Module):
        self.rows, self.original, self.layer, self.ran = rows, original, layer, False

    def __call__(self, x, *args, **kwargs):
        y = self.original(x, *args, **kwargs)
        spans = self.rows.of(x)
        if spans:
            self.ran = True
            for start, stop in spans:
                y[start:stop].add_(self.layer(host.plain(x[start:stop]), *args, **kwargs), alpha=self.rows.omega - 1.0)
        return y


class LinearPart:
    """y += scale * up down x on a linear layer, or on a slice of its outputs."""

    def __init__(self, up: torch.Tensor, down: torch.Tensor, rows: tuple[int, int] | None):
        self.up, self.down, self.slice = up, down, rows

    def add_to(self, y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
        up, down = self.up.to(x), self.down.to(x)
        inner = F.linear(x, down)
        if self.slice is not None:
            y.narrow(-1, *self.slice).add_(F.linear(inner, up).to(y.dtype), alpha=scale)
        elif y.is_contiguous() and y.dtype == x.dtype:
            y.view(-1, y.shape[-1]).addmm_(inner.reshape(-1, inner.shape[-1]), up.t(), alpha=scale)
        else:
            y.add_(F.linear(inner, up).to(y.dtype), alpha=scale)

    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes


class ConvolutionPart:
    """y += scale * up down x, the kernel in `down`, with the layer's own stride and padding."""

    def __init__(self, layer: torch.nn.Module, up: torch.Tensor, down: torch.Tensor):
        self.layer, self.up, self.down = layer, up.reshape(*up.shape, *[1] * (down.ndim - 2)), down

    def add_to(self, y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
        inner = self.layer._conv_forward(x, self.down.to(x), None)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[inner.ndim - 3]
        y.add_(convolve(inner, self.up.to(x)), alpha=scale)

    def nbytes(self) -> int:
        return self.up.nbytes + self.down.nbytes


class KroneckerPart:
    """y += scale * (w1 (x) w2) x: x seen as [in1, in2] becomes w1 X w2^T."""

    def __init__(self, w1: torch.Tensor, w2: torch.Tensor):
        self.w1, self.w2 = w1, w2

    def add_to(self, y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
        w1, w2 = self.w1.to(x), self.w2.to(x)
        inner = F.linear(x.unflatten(-1, (w1.shape[1], w2.shape[1])), w2)  # [..., in1, out2]
        y.add_(torch.matmul(w1, inner).flatten(-2), alpha=scale)

    def nbytes(self) -> int:
        return self.w1.nbytes + self.w2.nbytes


def factored(layer: torch.nn.Module, terms, shape, place: dict) -> list | None:
    """The parts of A for `layer`, or None where a weight of its own is cheaper or the only way. `place`: device and dtype of the parts."""
    if not isinstance(layer, torch.nn.Linear) and not hasattr(layer, "_conv_forward") and len(shape) != 2:
        return None
    convolution = hasattr(layer, "_conv_forward")
    if (convolution and layer.groups != 1) or isinstance(layer, torch.nn.Embedding) or len(shape) < 2:
        return None
    if any(not isinstance(term, (LowRank, Kronecker)) or (convolution and not (isinstance(term, LowRank) and term.rows is None)) for _, term in terms):
        return None
    if sum(_work(term) for _, term in terms) > CHEAP * math.prod(shape):
        return None
    parts = []
    low = [(factor, term) for factor, term in terms if isinstance(term, LowRank)]
    for rows in dict.fromkeys(term.rows for _, term in low):  # LoRAs stacked on one layer are one LoRA of the sum of their ranks
        same = [(factor, term) for factor, term in low if term.rows == rows]
        up = torch.cat([term.up.to(device=place["device"], dtype=torch.float32) * factor for factor, term in same], dim=1).to(**place)
        down = torch.cat([term.down.to(**place) for _, term in same])
        parts.append(ConvolutionPart(layer, up, down) if convolution else LinearPart(up, down, rows))
    for factor, term in terms:
        if isinstance(term, Kronecker):
            w1 = term.w1.to(device=place["device"], dtype=torch.float32) * factor
            parts.append(KroneckerPart(w1.to(**place), term.w2.to(**place)))
    return parts


# Multiplications of the factors against those of the layer, on the weak rows. Above it a weight of their own is faster.
CHEAP = 0.35


def _work(term) -> float:
    """Multiplications for one row (and position) of the input."""
    if isinstance(term, LowRank):
        return term.numel()
    return term.w1.shape[1] * term.w2.numel() + term.w1.numel() * term.w2.shape[0]


def _channels_second(original) -> bool:
    return hasattr(getattr(original, "__self__", None), "_conv_forward")
