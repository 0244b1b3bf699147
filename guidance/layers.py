"""One layer with two weights: the tuned one for the strong rows of a batch, the interpolated one for the weak rows.

    W_w = omega W' + (1 - omega) W = W' - (1 - omega) A        W' tuned, W base, A = W' - W

The host has W' in the layer already. So where A has small factors, they are all that is kept, and (1 - omega) A is taken off the weak
rows' output or off the weight, at each call anew (`Correction`); otherwise the weak rows get a layer with W_w of their own (`SecondWeight`).
Both are the layer's `forward` during a sampling run and leave no trace after it.
"""

from __future__ import annotations

import torch

from ..host import patcher as host
from .parts import Part, by_channel, is_convolution, pays


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
    """forward(x) of the tuned layer, less (1 - omega) A x on the weak rows: taken off the output, or off the weight where that is less work."""

    def __init__(self, rows: Rows, original, layer: torch.nn.Module, parts: list[Part], bias: torch.Tensor | None, tuned_bias: torch.Tensor | None = None):
        """`bias`: what the two biases differ in, if anything; `tuned_bias`: the tuned layer's, which some pieces need."""
        self.rows, self.original, self.layer, self.parts, self.bias, self.ran = rows, original, layer, parts, bias, False
        taken = [of for of in (part.of_bias(tuned_bias) for part in parts if tuned_bias is not None) if of is not None]
        self.shift = bias if not taken else (0 if bias is None else bias) - sum(taken)

    def __call__(self, x, *args, **kwargs):
        spans, scale = self.rows.of(x), self.rows.omega - 1.0
        if not spans:
            return self.original(x, *args, **kwargs)
        self.ran = True
        if (
            not torch.is_grad_enabled()
            and host.is_direct(self.layer, self.original, x)
            and pays(self.parts, self.layer, x, sum(stop - start for start, stop in spans))
        ):
            weight, bias = self.layer.weight, self.layer.bias
            for part in self.parts:
                weight = part.to_weight(weight, scale)
            if self.bias is not None:
                bias = bias + scale * self.bias.to(bias)
            return two_products(self.layer, x, spans, weight, bias)
        y = self.original(x, *args, **kwargs)
        for start, stop in spans:
            weak_x, weak_y = host.plain(x[start:stop]), y[start:stop]
            for part in self.parts:
                part.to_output(weak_y, weak_x, scale, self.layer)
            if self.shift is not None:
                weak_y.add_(by_channel(self.shift.to(weak_y), weak_y, self.layer), alpha=scale)
        return y

    def nbytes(self) -> int:
        return sum(part.nbytes() for part in self.parts) + (0 if self.shift is None else self.shift.nbytes)


class SecondWeight:
    """forward(x) of the tuned layer for the strong rows, of a layer with other weights for the weak rows."""

    def __init__(self, rows: Rows, original, layer: torch.nn.Module, second: torch.nn.Module):
        self.rows, self.original, self.layer, self.second, self.ran = rows, original, layer, second, False

    def __call__(self, x, *args, **kwargs):
        spans = self.rows.of(x)
        if not spans:
            return self.original(x, *args, **kwargs)
        self.ran = True
        if isinstance(self.layer, torch.nn.Linear) and not torch.is_grad_enabled() and host.is_direct(self.layer, self.original, x):
            return two_products(self.layer, x, spans, self.second.weight, self.second.bias)
        return torch.cat([self.second(host.plain(part), *args, **kwargs) if weak else self.original(part, *args, **kwargs) for part, weak in _split(x, spans)])

    def nbytes(self) -> int:
        return _nbytes(self.second)


def two_products(layer, x, spans, weight, bias):
    """The layer's own weight and bias on the strong rows of `x`, `weight` and `bias` on the weak rows. A linear layer writes both into one output."""
    host.heed_interrupt()
    if is_convolution(layer):
        pairs = {True: (weight, bias), False: (layer.weight, layer.bias)}
        return torch.cat([layer._conv_forward(part, *pairs[weak]) for part, weak in _split(x, spans)])
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    for (part, weak), (out, _) in zip(_split(x, spans), _split(y, spans), strict=True):
        w, b = (weight, bias) if weak else (layer.weight, layer.bias)
        part, out = part.reshape(-1, part.shape[-1]), out.view(-1, out.shape[-1])
        torch.mm(part, w.t(), out=out) if b is None else torch.addmm(b, part, w.t(), out=out)
    return y


class SecondDelta:
    """forward(x) of the tuned layer, plus (omega - 1) times a layer with A for its weight on the weak rows.

    Dearer than `SecondWeight` by one product on the weak rows, but right while the tuned weight itself changes (conditioning hooks)
    or omega does. Linear, convolution, norm and embedding layers are all linear in weight and bias together.
    """

    def __init__(self, rows: Rows, original, layer: torch.nn.Module, second: torch.nn.Module):
        self.rows, self.original, self.layer, self.second, self.ran = rows, original, layer, second, False

    def __call__(self, x, *args, **kwargs):
        y = self.original(x, *args, **kwargs)
        spans = self.rows.of(x)
        if spans:
            self.ran = True
            for start, stop in spans:
                y[start:stop].add_(self.second(host.plain(x[start:stop]), *args, **kwargs), alpha=self.rows.omega - 1.0)
        return y

    def nbytes(self) -> int:
        return _nbytes(self.second)


def _split(x: torch.Tensor, spans):
    """(rows, are they weak?) of `x`, in order."""
    at = 0
    for start, stop in spans:
        if start > at:
            yield x[at:start], False
        yield x[start:stop], True
        at = stop
    if at < x.shape[0]:
        yield x[at:], False


def _nbytes(layer: torch.nn.Module) -> int:
    return sum(value.nbytes for value in layer.parameters(recurse=False))
