"""The weak rows of a layer's input: known, or the forward is refused. Nothing is inferred from sizes.

A forward has either one side (all rows weak, or all strong: no layout matters), or both sides in one batch. In a batch, a layer must get
exactly the rows of the batch in their order. `host.batch_rows` declares which networks promise that. A layer that gets another number of
rows raises `RowsUnknown`, and the caller predicts each side in its own forward.
"""

from __future__ import annotations

import torch

Span = slice


class RowsUnknown(Exception):
    """The weak rows of a batch are not known. The message says why, as a clause after "because"."""


class Rows:
    """The weak rows of the current forward, and omega. Set before each forward, read by every layer in it."""

    def __init__(self, omega: float):
        self.omega = omega
        self.total: int | None = None  # rows of a batch of both sides; None where the forward has one side
        self.spans: tuple[Span, ...] = ()

    def one_side(self, weak: bool) -> None:
        """All rows of the next forward are weak, or none is, whatever its layers do with them."""
        self.total, self.spans = None, (slice(None),) if weak else ()

    def both_sides(self, spans, total: int) -> None:
        """The rows [start, stop) of `spans`, in order, are weak among `total`."""
        self.total, self.spans = total, tuple(slice(*span) for span in spans)

    def of(self, x: torch.Tensor) -> tuple[Span, ...]:
        """The weak slices of the first dimension of `x`, in order; empty if no row is weak. Raises RowsUnknown."""
        if self.total is not None and (x.ndim < 2 or x.shape[0] != self.total):
            raise RowsUnknown(f"a layer was given {x.shape[0] if x.ndim > 1 else 'one'} rows in a batch of {self.total}")
        return self.spans

    def count(self, x: torch.Tensor) -> int:
        """The number of weak rows of `x`."""
        return sum(len(range(*span.indices(x.shape[0]))) for span in self.of(x))

    def split(self, x: torch.Tensor):
        """(rows, are they weak?) of `x`, in order."""
        spans = self.of(x)
        if spans == (slice(None),):
            yield x, True
            return
        at = 0
        for span in spans:
            if span.start > at:
                yield x[at : span.start], False
            yield x[span], True
            at = span.stop
        if at < x.shape[0]:
            yield x[at:], False
