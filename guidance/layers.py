"""One layer with two weights: the tuned one for the strong rows of a batch, the interpolated one for the weak rows.

    W_w = omega W' + (1 - omega) W = W' - (1 - omega) A        W' tuned, W base, A = W' - W

The layer holds W'. If A has small factors, only these are kept, and each call subtracts (1 - omega) A from the weak rows' output or from
the weight (`Correction`). Otherwise the weak rows get their own layer with W_w (`SecondWeight`). Both replace the layer's `forward` during
a sampling run and leave no trace after it. `Rows` says which rows are weak.
"""

from __future__ import annotations

from typing import Any

import torch

from ..host import patcher as host_patcher
from ..host.forwards import Replaced
from .parts import Part, by_channel, is_convolution, pays
from .rows import Rows


class Weakened(Replaced):
    """A layer's `forward` for one run. original: the forward below it; ran: whether a weak row has passed."""

    layer: Any  # weight, bias and stride are the layer's own

    def __init__(self, rows: Rows, original, layer: torch.nn.Module):
        super().__init__(original)
        self.rows, self.layer, self.ran = rows, layer, False

    def __call__(self, x, *args, **kwargs):
        if self.retired or not (spans := self.rows.of(x)):
            return self.original(x, *args, **kwargs)
        self.ran = True
        return self.weaken(x, spans, *args, **kwargs)

    def weaken(self, x: torch.Tensor, spans, *args, **kwargs) -> torch.Tensor:
        """The output for an `x` with weak rows `spans`."""
        raise NotImplementedError

    def retire(self) -> None:
        ran = self.ran
        super().retire()
        self.ran = ran

    def nbytes(self) -> int:
        """Bytes that the run keeps beside the model for this layer."""
        raise NotImplementedError


class Correction(Weakened):
    """forward(x) of the tuned layer minus (1 - omega) A x on the weak rows, subtracted from the output or, if that is less work, from the weight."""

    def __init__(self, rows: Rows, original, layer: torch.nn.Module, parts: list[Part], bias: torch.Tensor | None, tuned_bias: torch.Tensor | None = None):
        """bias: the difference of the two biases, if any; tuned_bias: the tuned layer's, which some parts need."""
        super().__init__(rows, original, layer)
        self.parts, self.bias = parts, bias
        taken = [of for of in (part.of_bias(tuned_bias) for part in parts if tuned_bias is not None) if of is not None]
        self.shift: torch.Tensor | None = bias
        if taken:
            total = sum(taken[1:], taken[0])
            self.shift = -total if bias is None else bias - total

    def weaken(self, x, spans, *args, **kwargs):
        scale = self.rows.omega - 1.0
        if not torch.is_grad_enabled() and host_patcher.is_direct(self.layer, self.original, x) and pays(self.parts, self.layer, x, self.rows.count(x)):
            weight, bias = self.layer.weight, self.layer.bias
            for part in self.parts:
                weight = part.to_weight(weight, scale)
            if self.bias is not None:
                bias = bias + scale * self.bias.to(bias)
            return two_products(self.layer, x, self.rows, weight, bias)
        y = self.original(x, *args, **kwargs)
        for span in spans:
            weak_x, weak_y = host_patcher.dequantized(x[span]), y[span]
            for part in self.parts:
                part.to_output(weak_y, weak_x, scale, self.layer)
            if self.shift is not None:
                weak_y.add_(by_channel(self.shift.to(weak_y), weak_y, self.layer), alpha=scale)
        return y

    def nbytes(self) -> int:
        return sum(part.nbytes() for part in self.parts) + (0 if self.shift is None else self.shift.nbytes)


class SecondWeight(Weakened):
    """forward(x) of the tuned layer for the strong rows, and of a second layer for the weak rows."""

    def __init__(self, rows: Rows, original, layer: torch.nn.Module, second: torch.nn.Module):
        super().__init__(rows, original, layer)
        self.second = second

    def weaken(self, x, spans, *args, **kwargs):
        if isinstance(self.layer, torch.nn.Linear) and not torch.is_grad_enabled() and host_patcher.is_direct(self.layer, self.original, x):
            return two_products(self.layer, x, self.rows, self.second.weight, self.second.bias)
        return torch.cat(
            [
                self.second(host_patcher.dequantized(part), *args, **kwargs) if weak else self.original(part, *args, **kwargs)
                for part, weak in self.rows.split(x)
            ]
        )

    def nbytes(self) -> int:
        return _nbytes(self.second)


def two_products(layer, x, rows: Rows, weight, bias):
    """The layer's own weight and bias on the strong rows of `x`, the given ones on the weak rows. A linear layer writes both into one output."""
    host_patcher.heed_interrupt()
    if is_convolution(layer):
        pairs = {True: (weight, bias), False: (layer.weight, layer.bias)}
        return torch.cat([layer._conv_forward(part, *pairs[weak]) for part, weak in rows.split(x)])
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    for (part, weak), (out, _) in zip(rows.split(x), rows.split(y), strict=True):
        w, b = (weight, bias) if weak else (layer.weight, layer.bias)
        part, out = part.reshape(-1, part.shape[-1]), out.view(-1, out.shape[-1])
        torch.mm(part, w.t(), out=out) if b is None else torch.addmm(b, part, w.t(), out=out)
    return y


class SecondDelta(Weakened):
    """forward(x) of the tuned layer, plus (omega - 1) times a layer with the weight A on the weak rows.

    Costs one product on the weak rows more than `SecondWeight`, but stays right while the tuned weight changes (conditioning hooks) or
    omega does. Linear, convolution, norm and embedding layers are all linear in weight and bias together.
    """

    def __init__(self, rows: Rows, original, layer: torch.nn.Module, second: torch.nn.Module):
        super().__init__(rows, original, layer)
        self.second = second

    def weaken(self, x, spans, *args, **kwargs):
        y = self.original(x, *args, **kwargs)
        for span in spans:
            y[span].add_(self.second(host_patcher.dequantized(x[span]), *args, **kwargs), alpha=self.rows.omega - 1.0)
        return y

    def nbytes(self) -> int:
        return _nbytes(self.second)


def _nbytes(layer: torch.nn.Module) -> int:
    return sum(value.nbytes for value in layer.parameters(recurse=False))
