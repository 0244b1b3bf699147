"""The curves of a run in bounded room: as a page draws them, and as they stay in a workflow file.

JSON form: {"from": 1, "every": 2, "loss": [...], "spl": [...], "learning_rate": [...] or a number where it never changes, "drift": {"<v1>": [...]}}.
Entry i is the mean over the steps from + i * every to from + (i + 1) * every - 1; null where nothing was measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

ROOM = 256  # entries; a chart on a node is about that many pixels wide
COLUMNS = ("loss", "spl", "learning_rate")


class Curves:
    """Columns over the steps of a run. Past `ROOM` entries, neighbours are averaged and each entry stands for twice as many steps."""

    def __init__(self, tokens: Sequence[str] = ()):
        self.tokens = list(tokens)
        self.first: int | None = None
        self.every = 1
        self.entries: list[tuple[list[float], int]] = []  # (means, the steps that they stand for)

    def add(self, step: int, values: dict[str, float], drift: dict[str, float]) -> None:
        """The values of one step; steps come in their order."""
        row = [values[name] for name in COLUMNS] + [drift.get(token, math.nan) for token in self.tokens]
        self.first = step if self.first is None else self.first
        index = (step - self.first) // self.every
        while index >= ROOM:
            self.entries = [_mean(self.entries[place : place + 2]) for place in range(0, len(self.entries), 2)]
            self.every *= 2
            index = (step - self.first) // self.every
        if index < len(self.entries):
            self.entries[index] = _mean([self.entries[index], (row, 1)])
        else:
            self.entries.append((row, 1))

    def as_json(self) -> dict:
        rows = [row for row, _ in list(self.entries)]  # a copy: pages ask while the run goes on
        columns = [[_short(row[column]) for row in rows] for column in range(len(COLUMNS) + len(self.tokens))]
        named: dict[str, Any] = dict(zip(COLUMNS, columns, strict=False))
        if len(set(named["learning_rate"])) == 1:
            named["learning_rate"] = named["learning_rate"][0]
        return {"from": self.first or 1, "every": self.every, **named, "drift": dict(zip(self.tokens, columns[len(COLUMNS) :], strict=True))}


def _mean(entries: list[tuple[list[float], int]]) -> tuple[list[float], int]:
    """The mean of entries (row, steps), each weighted by the steps that it stands for; what one of them lacks (nan) is taken from the other."""
    steps = sum(count for _, count in entries)
    row = []
    for values in zip(*(values for values, _ in entries), strict=True):
        known = [(value, count) for value, (_, count) in zip(values, entries, strict=True) if not math.isnan(value)]
        row.append(sum(value * count for value, count in known) / sum(count for _, count in known) if known else math.nan)
    return row, steps


def finite(value):
    """`value` for JSON, which knows no nan and no infinity: null in their place, however deep."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float) -> float | None:
    """Four digits are more than a chart shows; JSON knows no nan."""
    return float(f"{value:.4g}") if math.isfinite(value) else None
