"""The comparison picture: photos above, one row a prompt, one column a way of drawing, scores beneath, captions everywhere."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, LINE = (250, 249, 247), (34, 34, 40), (120, 118, 116), (222, 219, 214)
GAP, MARGIN = 14, 36


SHOWN = 2  # pictures of a cell, when it has more than one


@dataclass(frozen=True)
class Column:
    title: str
    subtitle: str
    scores: Sequence[str] = ()


def comparison(
    title: str, photos: list[Image.Image], columns: list[Column], rows: list[tuple[str, list[list[Image.Image]]]], footer: str, cell: int = 256
) -> Image.Image:
    """The picture as RGB. `rows` holds (prompt, the pictures of each column), of which the first ones are shown, each `cell` pixels wide in all."""
    shown = min(SHOWN, min(len(pictures) for _, cells in rows for pictures in cells))
    side = (cell - 4 * (shown - 1)) // shown
    left = 210
    width = MARGIN * 2 + left + len(columns) * (cell + GAP) - GAP
    strip = min(96, (width - 2 * MARGIN - left) // max(1, len(photos)) - 8)
    top = MARGIN + 52 + strip + 40 + 62
    under = 26 * max(len(column.scores) for column in columns)
    notes = textwrap.wrap(footer, (width - 2 * MARGIN) // 7)
    bottom = top + len(rows) * (side + GAP)
    sheet = Image.new("RGB", (width, bottom + under + 18 * len(notes) + 34), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 8), title, INK, _font(30))
    y = MARGIN + 48
    draw.multiline_text((MARGIN, y + 6), f"{len(photos)} photos\nwere learned", FAINT, _font(16), spacing=6)
    for index, photo in enumerate(photos):
        sheet.paste(_fit(photo, strip), (MARGIN + left + index * (strip + 8), y))
    y += strip + 22
    draw.line((MARGIN, y, width - MARGIN, y), LINE, 1)
    for index, column in enumerate(columns):
        x = MARGIN + left + index * (cell + GAP)
        draw.text((x, y + 16), column.title, INK, _font(19))
        draw.text((x, y + 42), column.subtitle, FAINT, _font(13))
        for line, text in enumerate(column.scores):
            draw.text((x, bottom + 2 + 26 * line), text, INK, _font(16))
    for number, (prompt, cells) in enumerate(rows):
        y = top + number * (side + GAP)
        draw.multiline_text((MARGIN, y + 4), "\n".join(textwrap.wrap(f"“{prompt}”", 22)), INK, _font(16), spacing=7)
        for index, pictures in enumerate(cells):
            for place, picture in enumerate(pictures[:shown]):
                sheet.paste(_fit(picture, side), (MARGIN + left + index * (cell + GAP) + place * (side + 4), y))
    for line, text in enumerate(notes):
        draw.text((MARGIN, bottom + under + 14 + 18 * line), text, FAINT, _font(13))
    return sheet


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The middle square of `image` at `side` pixels."""
    square = min(image.size)
    x, y = (image.width - square) // 2, (image.height - square) // 2
    cut = image.convert("RGB").crop((x, y, x + square, y + square))
    return cut.resize((side, side), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
