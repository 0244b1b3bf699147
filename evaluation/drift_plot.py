"""Plot of a token's drift: its length and meaning among ordinary words, before and after TEA."""

from __future__ import annotations

import math

import torch

from .canvas import THEMES, Canvas, ticks
from .measure import STATES, Drift

WIDTH, HEIGHT, MARGIN = 1000, 1120, 36
_METRICS = (("L2", "l2"), ("Hausdorff", "hausdorff"), ("Mahalanobis", "mahalanobis"), ("KL", "kl"))


def plots(drifts: list[Drift], theme: str = "dark") -> torch.Tensor:
    """One plot for each token, as a batch."""
    return torch.cat([plot(drift, theme) for drift in drifts])


def plot(drift: Drift, theme: str = "dark") -> torch.Tensor:
    """The plot of one token, [1, 1120, 1000, 3], legible at the size of a node. `theme` is `dark` or `light`."""
    if theme not in THEMES:
        raise ValueError(f"theme is {theme!r}; expected one of {', '.join(map(repr, THEMES))}.")
    canvas = Canvas(WIDTH, HEIGHT, THEMES[theme])
    _header(canvas, drift)
    _norms(canvas, drift, 150, 430)
    _ranks(canvas, drift, 446, 676)
    _sets(canvas, drift, 692, HEIGHT - MARGIN)
    return canvas.tensor()


def _header(canvas: Canvas, drift: Drift) -> None:
    canvas.text(MARGIN, 66, _short(drift.token, 18), 46, bold=True)
    x = MARGIN + canvas.width_of(_short(drift.token, 18), 46) + 18
    canvas.text(x, 66, f"against  {_short(drift.class_word, 18)}", 34, canvas.theme.faint)
    x = MARGIN
    for name, color in _series(canvas, drift):
        canvas.dot(x + 9, 107, 9, color)
        canvas.text(x + 28, 107, name, 26, anchor="lm")
        x += canvas.width_of(name, 26) + 64


def _norms(canvas: Canvas, drift: Drift, top: float, bottom: float) -> None:
    """Histogram of the vocabulary's norms for each encoder, with the token's norm before and after TEA, on a logarithmic axis."""
    encoders = list(dict.fromkeys(vector.encoder for vector in drift.vectors))
    width = (WIDTH - 2 * MARGIN - 16 * (len(encoders) - 1)) / max(len(encoders), 1)
    for index, key in enumerate(encoders):
        left = MARGIN + index * (width + 16)
        _panel(canvas, left, top, left + width, bottom, "Length among all words" if len(encoders) == 1 else f"Length, {key}")
        own = [vector for vector in drift.vectors if vector.encoder == key]
        before, after = (sum(getattr(vector, name) for vector in own) / len(own) for name in ("cosine", "adjusted_cosine"))
        cosine = f"cosine {before:.2f} to {after:.2f}" if _has_token_slerp(drift) else f"cosine {before:.2f}"
        canvas.text(left + width - 24, top + 38, cosine, 24, canvas.theme.faint, "rs")
        _histogram(canvas, drift, key, left + 24, top + 62, left + width - 24, bottom - 40)


def _histogram(canvas: Canvas, drift: Drift, key: str, left: float, top: float, right: float, bottom: float) -> None:
    theme, words = canvas.theme, drift.vocabulary[key][drift.vocabulary[key] > 0].double()
    vectors = [vector for vector in drift.vectors if vector.encoder == key]
    marks = [value for vector in vectors for value in (vector.norm, vector.adjusted_norm)] + [drift.class_norms[key]]
    low = min(torch.quantile(words, 0.001).item(), *(mark for mark in marks if mark > 0)) * 0.9
    high = max(torch.quantile(words, 0.999).item(), *marks) * 1.1
    scale = (right - left) / math.log(high / low)

    def x_of(value: float) -> float:
        return left + math.log(max(value, low) / low) * scale

    count = max(12, int((right - left) / 9))
    bins = torch.histc(words.clamp(low, high).log(), count, math.log(low), math.log(high)).tolist()
    step = (right - left) / count
    for i, number in enumerate(bins):
        # square root: the few words of unusual length stay visible
        canvas.box(left + i * step + 1, bottom - (bottom - top - 34) * math.sqrt(number / max(bins)), left + (i + 1) * step - 1, bottom, theme.bars, 2)
    canvas.line(left, bottom, right, bottom, theme.line)
    for tick in ticks(low, high, 6, logarithmic=high > 10 * low):
        canvas.text(x_of(tick), bottom + 27, f"{tick:g}", 22, theme.faint, "ms")
    adjusted = vectors if _has_token_slerp(drift) else []
    lines = [(vector.adjusted_norm, theme.series[1]) for vector in adjusted] + [(vector.norm, theme.series[0]) for vector in vectors]
    origin, label = x_of(drift.class_norms[key]), _short(drift.class_word, 16)
    crowded = any(-8 < x_of(value) - origin < canvas.width_of(label, 22) + 24 for value, _ in lines)
    side = -1 if crowded and origin - canvas.width_of(label, 22) - 16 > left else 1
    canvas.text(origin + 14 * side, top + 18, label, 22, theme.ink, "lm" if side > 0 else "rm")
    for value, color in [(drift.class_norms[key], theme.ink), *lines]:
        canvas.line(x_of(value), top + 18, x_of(value), bottom, color, 4)
        canvas.dot(x_of(value), top + 18, 8, color, theme.panel)


def _ranks(canvas: Canvas, drift: Drift, top: float, bottom: float) -> None:
    """Distances of the adjectives' phrases from the class word, and the token's rank among them."""
    theme, left, right = canvas.theme, MARGIN + 24, WIDTH - MARGIN - 24
    _panel(canvas, MARGIN, top, WIDTH - MARGIN, bottom, f"Distance from “{_short(drift.class_word, 24)}”, among {len(drift.adjectives)} kinds of it")
    values = [*drift.adjectives.tolist(), *(state.distance for state in drift.states)]
    room = (max(values) - min(values)) * 0.06 or 1.0
    low, high, axis = max(0.0, min(values) - room), max(values) + room, bottom - 44

    def x_of(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    for value in drift.adjectives.tolist():
        canvas.line(x_of(value), axis - 38, x_of(value), axis - 6, theme.bars, 2.5)
    canvas.line(left, axis, right, axis, theme.line)
    for tick in ticks(low, high, 6):
        canvas.text(x_of(tick), axis + 30, f"{tick:g}", 22, theme.faint, "ms")
    edge = right + 1
    for state, (_, color) in sorted(zip(drift.states, _series(canvas, drift), strict=True), key=lambda item: -item[0].distance):
        x, label = x_of(state.distance), f"{state.rank} of {len(drift.adjectives) + 1}"
        canvas.line(x, axis - 76, x, axis - 2, color, 4)
        canvas.dot(x, axis - 76, 9, color, theme.panel)
        middle = min(x, edge - canvas.width_of(label, 24) / 2 - 4)  # left of the label at its right
        canvas.text(middle, axis - 94, label, 24, color, "ms", bold=True)
        edge = middle - canvas.width_of(label, 24) / 2 - 14


def _sets(canvas: Canvas, drift: Drift, top: float, bottom: float) -> None:
    """Scene kept, distance from the class's prompts and spread within the token's own, the states side by side."""
    theme, split, half = canvas.theme, MARGIN + 300, (top + bottom) / 2
    _panel(canvas, MARGIN, top, split, bottom, "Scene kept")
    step = (bottom - top - 70) / len(drift.states)
    for i, (state, (_, color)) in enumerate(zip(drift.states, _series(canvas, drift), strict=True)):
        y, share = top + 66 + i * step, max(0.0, min(1.0, state.kept))
        canvas.text(MARGIN + 24, y + 38, f"{max(0.0, state.kept):.0%}", 40, color, bold=True)
        canvas.box(MARGIN + 24, y + 54, split - 24, y + 72, theme.line, 9)
        canvas.box(MARGIN + 24, y + 54, MARGIN + 24 + share * (split - MARGIN - 48), y + 72, color, 9)
    first = drift.states[0]
    rows = (
        (top, half - 8, "Distance from the class’s prompts", [state.inter for state in drift.states], first.inter),
        (half + 8, bottom, f"Spread of prompts, {_short(drift.class_word, 18)} = line", [state.intra for state in drift.states], drift.class_intra),
    )
    for upper, lower, title, sets, unit in rows:
        _panel(canvas, split + 16, upper, WIDTH - MARGIN, lower, title)
        _bars(canvas, drift, sets, unit, split + 40, upper + 60, WIDTH - MARGIN - 24, lower - 40)


def _bars(canvas: Canvas, drift: Drift, sets: list, unit, left: float, top: float, right: float, bottom: float) -> None:
    """Each metric's bars, as a multiple of `unit` (the thin line)."""
    values = [[_ratio(getattr(one, name), getattr(unit, name)) for one in sets] for _, name in _METRICS]
    high = max(1.0, *(value for row in values for value in row)) * 1.05
    group = (right - left) / len(_METRICS)
    width = (group - 34) / len(STATES)
    for index, ((label, _), row) in enumerate(zip(_METRICS, values, strict=True)):
        x = left + index * group + 17
        for i, (value, (_, color)) in enumerate(zip(row, _series(canvas, drift), strict=True)):
            canvas.box(x + i * width + 2, bottom - (bottom - top) * value / high, x + (i + 1) * width - 2, bottom, color, 4)
        canvas.text(x + width * len(row) / 2, bottom + 28, label, 22, canvas.theme.faint, "ms")
    canvas.line(left, bottom, right, bottom, canvas.theme.line)
    canvas.line(left, bottom - (bottom - top) / high, right, bottom - (bottom - top) / high, canvas.theme.faint, 1.5)


def _panel(canvas: Canvas, left: float, top: float, right: float, bottom: float, title: str) -> None:
    canvas.box(left, top, right, bottom, canvas.theme.panel, 14)
    canvas.text(left + 24, top + 38, title, 26)


def _series(canvas: Canvas, drift: Drift) -> list[tuple[str, str]]:
    """(name, color) of each state; a plain word has no Token SLERP."""
    return [(state.name, canvas.theme.series[STATES.index(state.name)]) for state in drift.states]


def _has_token_slerp(drift: Drift) -> bool:
    return any(state.name == STATES[1] for state in drift.states)


def _ratio(value: float, unit: float) -> float:
    return value / unit if unit and math.isfinite(value) and math.isfinite(unit) else 0.0


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
