"""Augmentation: crop, mirror, and Custom Diffusion's scale augmentation with its masks and prompt prefixes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from .order import Sample

EMPTY = 0.5  # the canvas around a small picture: zero in the autoencoder's range of -1..1
SMALLER = 0.66  # how often the picture is shrunk; else it is enlarged
LARGEST = 1.4  # times the canvas


@dataclass(frozen=True)
class View:
    """One view of one photo, in pixels: center-cropped to the shape of the canvas, resized to `size`, pasted at or cropped from (top, left)."""

    concept: int
    image: int
    prior: bool
    canvas: tuple[int, int]  # height, width
    size: tuple[int, int]
    top: int
    left: int
    flip: bool


def draw_view(sample: Sample, random: np.random.Generator, augment: bool, flip: bool, resolution: int) -> tuple[View, str]:
    """A random view of `sample` and the prefix that its prompt gets ("" = none).

    Custom Diffusion's augmentation: with probability 0.66 the picture is shrunk to 1/3..1 of the canvas and pasted at a random position,
    with "far away" or "very small" in the prompt below 0.6; else it is enlarged to 1.2..1.4 and cropped, "zoomed in" or "close up".
    """
    height, width = sample.canvas
    scale, prefix = resolution, ""
    if augment:
        small = random.random() < SMALLER
        scale = int(random.integers(resolution // 3, resolution + 1) if small else random.integers(int(1.2 * resolution), int(LARGEST * resolution)))
        if scale < 0.6 * resolution:
            prefix = str(random.choice(["a far away ", "very small "]))
        elif scale > resolution:
            prefix = str(random.choice(["zoomed in ", "close up "]))
    size = (round(height * scale / resolution), round(width * scale / resolution))
    top, left = (int(random.integers(0, abs(whole - part) + 1)) for whole, part in zip(sample.canvas, size, strict=True))
    mirrored = flip and random.random() < 0.5
    return View(sample.concept, sample.image, sample.prior, sample.canvas, size, top, left, bool(mirrored)), prefix


def cut(picture: torch.Tensor, canvas: tuple[int, int]) -> torch.Tensor:
    """[channels, h, w] -> its center in the shape of the canvas, no larger than any view needs."""
    height, width = picture.shape[-2:]
    rows, columns = min(height, max(1, round(width * canvas[0] / canvas[1]))), min(width, max(1, round(height * canvas[1] / canvas[0])))
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = picture[:, top : top + rows, left : left + columns]
    largest = round(LARGEST * canvas[0]), round(LARGEST * canvas[1])
    return resize(middle, largest) if rows > largest[0] and columns > largest[1] else middle


def show(middle: torch.Tensor, view: View, empty: float) -> torch.Tensor:
    """The result of `cut` as the view shows it: [channels, *canvas]."""
    scaled = resize(middle.flip(-1) if view.flip else middle, view.size)
    if view.size[0] > view.canvas[0] or view.size[1] > view.canvas[1]:
        return scaled[:, view.top : view.top + view.canvas[0], view.left : view.left + view.canvas[1]]
    canvas = torch.full((len(scaled), *view.canvas), empty)
    canvas[:, view.top : view.top + view.size[0], view.left : view.left + view.size[1]] = scaled
    return canvas


def border_mask(view: View, cell: int) -> torch.Tensor:
    """[1, h, w] in latent cells of `cell` pixels: 0 outside the pasted picture and on its border (one cell each side), 1 elsewhere."""
    mask = torch.ones(1, view.canvas[0] // cell, view.canvas[1] // cell)
    if view.size[0] >= view.canvas[0] and view.size[1] >= view.canvas[1]:
        return mask
    spans = list(zip((view.top, view.left), view.size, strict=True))
    edges = [(start // cell + 1, (start + side) // cell - 1) for start, side in spans]
    if any(end <= start for start, end in edges):  # too small to lose its border: keep every cell that it covers
        edges = [(start // cell, -(-(start + side) // cell)) for start, side in spans]
    mask.zero_()
    mask[:, edges[0][0] : edges[0][1], edges[1][0] : edges[1][1]] = 1
    return mask


def resize(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[channels, h, w] -> [channels, *size]: bicubic for colors, bilinear for a mask, both antialiased."""
    if picture.shape[-2:] == size:
        return picture
    mode = "bicubic" if len(picture) == 3 else "bilinear"
    return functional.interpolate(picture[None], size=size, mode=mode, antialias=True, align_corners=False)[0]
