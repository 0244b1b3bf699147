"""Labelled grids of pictures: a sweep of one setting, or several methods on one prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import ImageColor

from .canvas import THEMES, Canvas

MARGIN, GAP, SMALLEST = 24, 12, 256  # pixels; SMALLEST is the minimum width of a cell, so that labels are legible


def grid(images: Sequence[torch.Tensor], labels: Sequence[str], title: str = "", columns: int = 0, theme: str = "dark") -> torch.Tensor:
    """One picture [1, height, width, 3] in 0..1, pixels unchanged; pictures narrower than 256 are enlarged by an integer factor.

    images   one [pictures, height, width, 3] for each label; the pictures of one label (several seeds) are stacked
    columns  images in a row; 0 = all in one row

    Raises ValueError if there are more labels than images.
    """
    if theme not in THEMES:
        raise ValueError(f"theme is {theme!r}; expected one of {', '.join(map(repr, THEMES))}.")
    if len(labels) > len(images):
        raise ValueError(f"There are {len(labels)} labels for {len(images)} images. Write one line for each image, and leave a line empty for none.")
    columns = min(columns or len(images), len(images))
    cells = [_enlarged(image) for image in images]
    width, height = (max(cell.shape[axis] for cell in cells) for axis in (2, 1))
    size = max(16, min(44, width // 16))
    band = 2 * size if any(label.strip() for label in labels) else 0
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    depths = [max(len(cell) for cell in row) for row in rows]
    full = 2 * MARGIN + columns * width + (columns - 1) * GAP
    head = 3 * size if title.strip() else 0
    tall = 2 * MARGIN + head + sum(band + depth * (height + GAP) for depth in depths) - GAP + (len(rows) - 1) * GAP
    colors = THEMES[theme]
    sheet = torch.tensor(ImageColor.getrgb(colors.paper)).div(255).expand(tall, full, 3).clone()
    if head:
        _write(sheet, title.strip(), MARGIN, MARGIN, full - 2 * MARGIN, head, round(size * 1.3), colors, colors.ink)
    top = MARGIN + head
    for number, (row, depth) in enumerate(zip(rows, depths, strict=True)):
        for index, cell in enumerate(row):
            left = MARGIN + index * (width + GAP)
            label = (*labels, *[""] * len(images))[number * columns + index].strip()
            if label:
                _write(sheet, label, left, top, width, band, size, colors, colors.ink)
            for level, picture in enumerate(cell):
                down = top + band + level * (height + GAP) + (height - picture.shape[0]) // 2
                across = left + (width - picture.shape[1]) // 2
                sheet[down : down + picture.shape[0], across : across + picture.shape[1]] = picture
        top += band + depth * (height + GAP) + GAP
    return sheet[None]


def _enlarged(image: torch.Tensor) -> torch.Tensor:
    """[pictures, height, width, 3] on the CPU, at least 256 wide."""
    factor = -(-SMALLEST // image.shape[2])
    return image[..., :3].float().cpu().clamp(0, 1).repeat_interleave(factor, 1).repeat_interleave(factor, 2)


def _write(sheet: torch.Tensor, text: str, left: int, top: int, width: int, height: int, size: int, theme, color: str) -> None:
    """Write `text` in the middle of a strip of the sheet. Text that is too long gets smaller, then shortened."""
    canvas = Canvas(width, height, theme)
    while size > 12 and canvas.width_of(text, size) > width:
        size -= 1
    while len(text) > 2 and canvas.width_of(text, size) > width:
        text = text.rstrip("…")[:-1] + "…"
    canvas.text(width / 2, height / 2, text, size, color, anchor="mm")
    sheet[top : top + height, left : left + width] = canvas.tensor()[0]
