"""Vector drawing on a unit square with Pillow: one drawing serves a 64 px training image and a 512 px poster."""

from __future__ import annotations

import math
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """Colour ``a`` moved towards ``b`` by ``t`` in [0, 1]."""
    red, green, blue = (round(x + (y - x) * t) for x, y in zip(a, b, strict=True))
    return red, green, blue


def ellipse(cx: float, cy: float, rx: float, ry: float, start: float = 0.0, end: float = 360.0, n: int = 40) -> np.ndarray:
    """Points [n, 2] on an ellipse; angles in degrees, clockwise from the right because y points down."""
    t = np.radians(np.linspace(start, end, n))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def rounded(cx: float, cy: float, rx: float, ry: float, power: float = 4.0, n: int = 48) -> np.ndarray:
    """Points [n, 2] on a superellipse: ``power`` 2 is an ellipse, large powers tend to the rectangle."""
    t = np.linspace(0, 2 * math.pi, n)
    c, s = np.cos(t), np.sin(t)
    return np.stack([cx + rx * np.sign(c) * np.abs(c) ** (2 / power), cy + ry * np.sign(s) * np.abs(s) ** (2 / power)], 1)


def smooth(points: list[tuple[float, float]], n: int = 8, closed: bool = True) -> np.ndarray:
    """Catmull-Rom curve through ``points``: a few hand-placed corners become an ear, a tail or a hill."""
    p = np.asarray(points, float)
    k = len(p)
    index = np.arange(k if closed else k - 1)
    at = (lambda i: p[i % k]) if closed else (lambda i: p[np.clip(i, 0, k - 1)])
    p0, p1, p2, p3 = at(index - 1)[:, None], at(index)[:, None], at(index + 1)[:, None], at(index + 2)[:, None]
    t = np.linspace(0, 1, n, endpoint=False)[None, :, None]
    curve = 0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, p[-1:]])


class Canvas:
    """A square picture in unit coordinates (origin top left, y down), drawn ``samples`` times larger and averaged down."""

    def __init__(self, size: int, samples: int = 4):
        self.size, self.samples = size, samples
        self.pixels = size * samples
        self.image = Image.new("RGB", (self.pixels, self.pixels))
        self._draw = ImageDraw.Draw(self.image)
        self._matrix = np.eye(3)

    @contextmanager
    def transformed(self, pivot: tuple[float, float], move: tuple[float, float] = (0.0, 0.0), scale: float = 1.0, degrees: float = 0.0, flip: bool = False):
        """Everything drawn inside is scaled, mirrored and turned about ``pivot``, then moved."""
        a = math.radians(degrees)
        turn = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) * scale
        if flip:
            turn = turn @ np.diag([-1.0, 1.0])
        local = np.eye(3)
        local[:2, :2] = turn
        local[:2, 2] = np.asarray(pivot) + np.asarray(move) - turn @ np.asarray(pivot)
        before, self._matrix = self._matrix, self._matrix @ local
        try:
            yield self
        finally:
            self._matrix = before

    def _place(self, points) -> list[float]:
        points = np.asarray(points, float)
        return ((points @ self._matrix[:2, :2].T + self._matrix[:2, 2]) * self.pixels).ravel().tolist()

    def _width(self, width: float) -> int:
        zoom = math.sqrt(abs(np.linalg.det(self._matrix[:2, :2])))
        return max(1, round(width * zoom * self.pixels))

    def fill(self, points, colour: RGB, outline: RGB | None = None, width: float = 0.016) -> None:
        """A filled shape; the outline runs centred on its edge, with round joints."""
        self._draw.polygon(self._place(points), fill=colour)
        if outline is not None:
            self.fill_outline(points, outline, width)

    def fill_outline(self, points, colour: RGB, width: float = 0.016) -> None:
        """Only the edge of a closed shape: drawn after its markings."""
        at = self._place(points)
        self._draw.line(at + at[:4], fill=colour, width=self._width(width), joint="curve")

    def line(self, points, colour: RGB, width: float) -> None:
        """An open stroke with round ends."""
        at, thick = self._place(points), self._width(width)
        self._draw.line(at, fill=colour, width=thick, joint="curve")
        for x, y in (at[:2], at[-2:]):
            self._draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=colour)

    def dot(self, x: float, y: float, r: float, colour: RGB) -> None:
        """A disc without outline."""
        self.fill(ellipse(x, y, r, r, n=24), colour)

    def inside(self, shape, parts, colour: RGB) -> None:
        """Paints the part of each polygon of ``parts`` that lies within ``shape``: markings that respect the body's edge."""
        box, within = self._mask(shape)
        for part in parts:
            _, marking = self._mask(part, box)
            self.image.paste(colour, box, ImageChops.multiply(within, marking))

    def _mask(self, points, box: tuple[int, int, int, int] | None = None) -> tuple[tuple[int, int, int, int], Image.Image]:
        at = np.asarray(self._place(points)).reshape(-1, 2)
        if box is None:
            low, high = np.floor(at.min(0)).astype(int), np.ceil(at.max(0)).astype(int) + 1
            box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]))
        ImageDraw.Draw(mask).polygon((at - box[:2]).ravel().tolist(), fill=255)
        return box, mask

    def gradient(self, top: RGB, bottom: RGB, y0: float = 0.0, y1: float = 1.0) -> None:
        """A vertical blend over the full width between heights ``y0`` and ``y1``."""
        a, b = round(y0 * self.pixels), round(y1 * self.pixels)
        ramp = np.linspace(0, 1, max(b - a, 1))[:, None, None]
        rows = (np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp).round().astype(np.uint8)
        self.image.paste(Image.fromarray(np.broadcast_to(rows, (b - a, self.pixels, 3)).copy()), (0, a))

    def result(self) -> Image.Image:
        """The finished picture, ``size`` x ``size``, RGB."""
        return self.image.reduce(self.samples) if self.samples > 1 else self.image
