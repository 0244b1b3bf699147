"""Measurements of a run: the losses of each step, and all steps as one tensor for the saved state."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple, dataclass, field, fields

import torch

from ..formats.token import LearnedToken


@dataclass(frozen=True)
class Step:
    """The measurements of one step.

    loss            what was minimized: the weighted sum of the terms below
    reconstruction  L_recon of the photos;  prior: of the prior images;  preservation: of the class prompt (DOP)
    spl             L_sp, the mean of the drifts
    gradient_norm   before clipping; not finite if the gradient overflowed in fp16 and the step was skipped
    learning_rate   of the first parameter group (network, or tokens)
    leak            how far the network's prediction for the class prompt has moved from the base model's on the same noise: the norm of the
                    difference / the norm of the base's. The last known value; nan where nothing of the network is trained
    drift           token -> 1 - cos between its prompt and its class prompt; the last known value between two measurements
    """

    step: int
    loss: float
    reconstruction: float
    prior: float
    preservation: float
    spl: float
    gradient_norm: float
    learning_rate: float
    leak: float
    drift: dict[str, float]

    @property
    def skipped(self) -> bool:
        return not math.isfinite(self.gradient_norm)


@dataclass(frozen=True)
class Mark:
    """What was measured of the result after `step` steps. None = not measured there.

    heldout    loss on held-out views and noise (training/heldout.py)
    likeness   mean likeness of the previews to the photos;  prompt: their mean fidelity to their prompts (training/scoring.py)
    previewed  previews were drawn
    """

    step: int
    heldout: float | None = None
    likeness: float | None = None
    prompt: float | None = None
    previewed: bool = False


@dataclass(frozen=True)
class Trained:
    """The result of a run: weights under core's LORA_MODEL names, the tokens, the measurements of each step, and the marks on the way."""

    lora: dict[str, torch.Tensor]
    tokens: list[LearnedToken]
    history: list[Step] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


_COLUMNS = ("loss", "reconstruction", "prior", "preservation", "spl", "gradient_norm", "learning_rate", "leak")
_FIRST = len(_COLUMNS) - 1  # columns before `leak` came
_MARK = tuple(one.name for one in fields(Mark))


def marks_of(state: dict) -> list[Mark]:
    """The marks in a saved state; none in one that an older version saved."""
    rows = state["marks"].tolist() if "marks" in state else []
    known = ([None if math.isnan(value) else value for value in row] for row in rows)
    return [Mark(int(step or 0), *measured, previewed=bool(previewed)) for step, *measured, previewed in known]


class History:
    """The steps and marks so far. `tensor` and `marks_tensor` give them as float64 tensors [rows, columns] for the saved state."""

    def __init__(self, tokens: list[str]):
        self.tokens = tokens
        self.steps: list[Step] = []
        self.marks: list[Mark] = []

    def add(self, step: int, values: list[float], learning_rate: float, leak: float | None = None) -> Step:
        """values: loss, reconstruction, prior, preservation, spl, gradient norm, then one drift for each token, or none. leak: None if not measured."""
        leak = leak if leak is not None else self.steps[-1].leak if self.steps else math.nan
        drift = dict(zip(self.tokens, values[6:], strict=False)) or (self.steps[-1].drift if self.steps else {})
        self.steps.append(Step(step, **dict(zip(_COLUMNS, (*values[:6], learning_rate, leak), strict=True)), drift=drift))
        return self.steps[-1]

    @property
    def skipped(self) -> int:
        return sum(step.skipped for step in self.steps)

    @property
    def skipped_last(self) -> int:
        """How many of the last steps in a row were skipped."""
        return sum(1 for _ in itertools.takewhile(lambda step: step.skipped, reversed(self.steps)))

    def tensor(self) -> torch.Tensor:
        missing = float("nan")
        rows = [[*(getattr(step, name) for name in _COLUMNS), *(step.drift.get(token, missing) for token in self.tokens)] for step in self.steps]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(_COLUMNS) + len(self.tokens))

    def marks_tensor(self) -> torch.Tensor:
        rows = [[math.nan if value is None else float(value) for value in astuple(mark)] for mark in self.marks]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), len(_MARK))

    def restore(self, rows: torch.Tensor) -> None:
        self.steps = []
        for index, row in enumerate(rows.tolist()):
            if len(row) == _FIRST + len(self.tokens):
                row.insert(_FIRST, math.nan)
            drift = {token: value for token, value in zip(self.tokens, row[len(_COLUMNS) :], strict=True) if value == value}
            self.steps.append(Step(index + 1, **dict(zip(_COLUMNS, row, strict=False)), drift=drift))
