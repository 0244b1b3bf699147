"""Core's LOSS_MAP: {"loss": one number per step, ...}, for its Plot Loss Graph."""

from __future__ import annotations

from collections.abc import Sequence


class FlatLoss(float):
    """A loss of a run whose losses are all equal, for example a run of one step.

    Core's plot divides by the difference between the highest and the lowest loss, which is zero here. This number divided by zero is 0.5,
    the middle of the plot. Otherwise it is an ordinary float.
    """

    def __sub__(self, other):
        return FlatLoss(float(self) - other)

    def __truediv__(self, other):
        return float(self) / other if other else 0.5


def loss_map(**losses: Sequence[float]) -> dict[str, list[float]]:
    """The LOSS_MAP of named losses, one number per step each."""
    return {name: [FlatLoss(value) for value in values] if len(set(values)) == 1 else list(values) for name, values in losses.items()}
