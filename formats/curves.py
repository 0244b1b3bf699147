"""A run's curves with a bounded number of entries, for the page and for the workflow file.

JSON form: {"from": 1, "every": 2, "loss": [...], "spl": [...], "learning_rate": [...] or a number if it is constant, "leak": [...],
"drift": {"<v1>": [...]}}. What an older version saved has no "leak".
Entry i is the mean over the steps from + i * every to from + (i + 1) * every - 1; null if nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MAX_ENTRIES = 256  # a chart on a node is about that many pixels wide
COLUMNS = ("loss", "spl", "learning_rate", "leak")


class Curves:
    """Columns over the steps of a run. Beyond `MAX_ENTRIES`, neighboring entries are averaged, so each covers twice as many steps."""

    def __init__(self, tokens: Sequence[str] = ()):
        self.tokens = list(tokens)
        self.first: int | None = None
        self.every = 1
        self.entries: list[tuple[list[float], int]] = []  # (means, number of steps)

    def add(self, step: int, values: dict[str, float], drift: dict[str, float]) -> None:
        """Add the values of one step. Steps come in order."""
        row = [values[name] for name in COLUMNS] + [drift.get(token, math.nan) for token in self.tokens]
        self.first = step if self.first is None else self.first
        index = (step - self.first) // self.every
        while index >= MAX_ENTRIES:
            self.entries = [_mean(self.entries[start : start + 2]) for start in range(0, len(self.entries), 2)]
            self.every *= 2
            index = (step - self.first) // self.every
        if index < len(self.entries):
            self.entries[index] = _mean([self.entries[index], (row, 1)])
        else:
            self.entries.append((row, 1))

    def as_json(self) -> dict:
        """The JSON form above."""
        rows = [row for row, _ in list(self.entries)]  # a copy: the page may ask while the run adds entries
        columns = [[_rounded(row[column]) for row in rows] for column in range(len(COLUMNS) + len(self.tokens))]
        named: dict[str, Any] = dict(zip(COLUMNS, columns, strict=False))
        if len(set(named["learning_rate"])) == 1:
            named["learning_rate"] = named["learning_rate"][0]
        return {"from": self.first or 1, "every": self.every, **named, "drift": dict(zip(self.tokens, columns[len(COLUMNS) :], strict=True))}


def _mean(entries: list[tuple[list[float], int]]) -> tuple[list[float], int]:
    """The mean of entries (row, steps), weighted by their steps. A value that is nan in one entry is taken from the other."""
    steps = sum(count for _, count in entries)
    row = []
    for values in zip(*(values for values, _ in entries), strict=True):
        known = [(value, count) for value, (_, count) in zip(values, entries, strict=True) if not math.isnan(value)]
        row.append(sum(value * count for value, count in known) / sum(count for _, count in known) if known else math.nan)
    return row, steps


def finite(value):
    """`value` for JSON: nan and infinity become null, at any depth."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(value: float) -> float | None:
    """Four digits, more than a chart shows; None for nan and infinity."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
