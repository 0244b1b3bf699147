"""A canvas on Pillow for plots: sharp text and shapes, drawn at three times the size and scaled down."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy
import torch
from PIL import Image, ImageDraw, ImageFont

OVERSAMPLE = 3


@dataclass(frozen=True)
class Theme:
    """Colors of a plot. The three `series` stay distinct for color-blind readers and in gray."""

    paper: str
    panel: str
    ink: str
    faint: str
    line: str
    bars: str
    series: tuple[str, str, str]


THEMES = {
    "dark": Theme("#1e1f22", "#26282c", "#f1f1f1", "#a9adb5", "#3b3e45", "#7d828c", ("#ff9f43", "#2ed3a2", "#6ab7ff")),
    "light": Theme("#ffffff", "#f6f7f9", "#1c1e21", "#5f6570", "#dcdfe4", "#a4aab4", ("#d95f02", "#009e73", "#2563c9")),
}


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


class Canvas:
    """Coordinates are pixels of the finished picture; (0, 0) is the upper left corner."""

    def __init__(self, width: int, height: int, theme: Theme):
        self.theme, self.size = theme, (width, height)
        self.image = Image.new("RGB", (width * OVERSAMPLE, height * OVERSAMPLE), theme.paper)
        self._draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int = 22, color: str | None = None, anchor: str = "ls", bold: bool = False) -> None:
        """`anchor` as in Pillow: l m r for the side, s for the baseline, m for the middle, t for the top."""
        width = OVERSAMPLE * 0.35 * size / 22 if bold else 0  # Pillow's built-in font has no bold face
        self._draw.text(self._at(x, y), text, color or self.theme.ink, _font(size * OVERSAMPLE), anchor, stroke_width=round(width))

    def width_of(self, text: str, size: int = 22) -> float:
        return self._draw.textlength(text, _font(size * OVERSAMPLE)) / OVERSAMPLE

    def box(self, left: float, top: float, right: float, bottom: float, color: str, radius: float = 0) -> None:
        if right - left > 0 and bottom - top > 0:
            radius = min(radius, (right - left) / 2, (bottom - top) / 2)
            self._draw.rounded_rectangle((*self._at(left, top), *self._at(right, bottom)), radius * OVERSAMPLE, color)

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str, width: float = 2) -> None:
        self._draw.line((*self._at(x1, y1), *self._at(x2, y2)), color, round(width * OVERSAMPLE))

    def dot(self, x: float, y: float, radius: float, color: str, ring: str | None = None) -> None:
        if ring:
            self.dot(x, y, radius + 2.5, ring)
        self._draw.ellipse((*self._at(x - radius, y - radius), *self._at(x + radius, y + radius)), color)

    def tensor(self) -> torch.Tensor:
        """The finished picture as ComfyUI's IMAGE: [1, height, width, 3], 0..1."""
        pixels = numpy.asarray(self.image.resize(self.size, Image.Resampling.LANCZOS), dtype=numpy.float32) / 255
        return torch.from_numpy(pixels).unsqueeze(0)

    @staticmethod
    def _at(x: float, y: float) -> tuple[float, float]:
        return x * OVERSAMPLE, y * OVERSAMPLE


def ticks(low: float, high: float, most: int = 6, logarithmic: bool = False) -> list[float]:
    """Round numbers within [low, high], about `most` at most."""
    if logarithmic:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for steps in ((1, 2, 5), (1, 3), (1,)):
            marks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
            if len(marks) <= most:
                return marks
        return marks[:: math.ceil(len(marks) / most)]
    if high <= low:
        return [low]
    step = next(s * 10.0**e for e in range(-12, 12) for s in (1, 2, 5) if (high - low) / (s * 10.0**e) <= most)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
