"""Plot of a report: for each measure all scores, the mean with its interval, and the lowest and highest picture."""

from __future__ import annotations

import random

import numpy
import torch
from PIL import Image
from torch.nn import functional

from .canvas import OVERSAMPLE, THEMES, Canvas, ticks
from .metrics import Report

WIDTH, MARGIN, PANEL, GAP, THUMB = 1000, 36, 208, 16, 112


def plot(report: Report, images: torch.Tensor, theme: str = "dark") -> torch.Tensor:
    """[1, height, 1000, 3], one panel a measure. `images` [n, 3, height, width] are the scored pictures, in order; `theme` is `dark` or `light`."""
    if theme not in THEMES:
        raise ValueError(f"theme is {theme!r}; expected one of {', '.join(map(repr, THEMES))}.")
    canvas = Canvas(WIDTH, 96 + (PANEL + GAP) * len(report.scores) + MARGIN - GAP, THEMES[theme])
    count = len(images)
    canvas.text(MARGIN, 62, f"{count} picture{'s' * (count > 1)}", 40, bold=True)
    canvas.text(WIDTH - MARGIN, 62, "mean and 95% interval; below: lowest and highest picture", 22, canvas.theme.faint, "rs")
    for index, (name, interval) in enumerate(report.intervals().items()):
        _panel(canvas, 96 + index * (PANEL + GAP), name, report.scores[name], interval, images, canvas.theme.series[index % 3])
    return canvas.tensor()


def _panel(canvas: Canvas, top: float, name: str, values: list[float], interval, images: torch.Tensor, color: str) -> None:
    theme = canvas.theme
    canvas.box(MARGIN, top, WIDTH - MARGIN, top + PANEL, theme.panel, 14)
    canvas.text(MARGIN + 24, top + 40, name, 28)
    summary = f"{interval.value:.3f}   [{interval.low:.3f}, {interval.high:.3f}]"
    canvas.text(WIDTH - MARGIN - 24, top + 40, summary, 28, color, "rs", bold=True)
    worst, best = min(range(len(values)), key=values.__getitem__), max(range(len(values)), key=values.__getitem__)
    y = top + 62
    _thumbnail(canvas, images[worst], MARGIN + 24, y)
    _thumbnail(canvas, images[best], WIDTH - MARGIN - 24 - THUMB, y)
    left, right, axis = MARGIN + 48 + THUMB, WIDTH - MARGIN - 48 - THUMB, top + PANEL - 46
    room = (max(values) - min(values)) * 0.05 or 0.01
    low, high = min(values) - room, max(values) + room

    def x_of(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    canvas.line(left, axis, right, axis, theme.line)
    for tick in ticks(low, high, 6):
        canvas.text(x_of(tick), axis + 30, f"{tick:g}", 22, theme.faint, "ms")
    scatter = random.Random(0)  # so that equal scores do not overlap
    for value in values:
        canvas.dot(x_of(value), axis - 12 - scatter.random() * 44, 4, theme.bars)
    middle = axis - 34
    canvas.box(x_of(interval.low) - 2, middle - 5, x_of(interval.high) + 2, middle + 5, color, 5)
    canvas.dot(x_of(interval.value), middle, 10, color, theme.panel)


def _thumbnail(canvas: Canvas, picture: torch.Tensor, x: float, y: float) -> None:
    """Paste `picture` [3, h, w] as a square; small ones are enlarged without blur."""
    side = THUMB * OVERSAMPLE
    small = max(picture.shape[1:]) < THUMB
    scaled = functional.interpolate(picture[None].float(), (side, side), mode="nearest" if small else "area")[0]
    pixels = (scaled.clamp(0, 1) * 255).round().byte().movedim(0, -1).numpy()
    canvas.image.paste(Image.fromarray(numpy.ascontiguousarray(pixels)), (round(x * OVERSAMPLE), round(y * OVERSAMPLE)))
