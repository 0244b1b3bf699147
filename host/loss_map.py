"""Core's LOSS_MAP: {"loss": a number for each step, ...}, which its Plot Loss Graph draws."""

from __future__ import annotations

from collections.abc import Sequence


class FlatLoss(float):
    """A loss of a run whose losses are all alike, for example a run of one step.

    Core's plot divides by the difference between the highest and the lowest loss, which is zero here. Divided by zero, this number is a
    half: the middle of the plot. In everything else it is the number that it is.
    """

    def __sub__(self, other):
        return FlatLoss(float(self) - other)

    def __truediv__(self, other):
        return float(self) / other if other else 0.5


def loss_map(**losses: Sequence[float]) -> dict[str, list[float]]:
    return {name: [FlatLoss(value) for value in values] if len(set(values)) == 1 else list(values) for name, values in losses.items()}
