"""The comparison picture: photos above, one row a prompt, one column a way of drawing, captions everywhere."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, FAINT, LINE = (250, 249, 247), (34, 34, 40), (120, 118, 116), (222, 219, 214)
GAP, MARGIN = 14, 36


@dataclass(frozen=True)
class Column:
    title: str
    subtitle: str


def comparison(
    title: str, photos: list[Image.Image], columns: list[Column], rows: list[tuple[str, list[Image.Image]]], footer: str, cell: int = 256
) -> Image.Image:
    """The picture as RGB. `rows` holds (prompt, one image a column); images are scaled to `cell` pixels, small ones without blur."""
    left = 210
    width = MARGIN * 2 + left + len(columns) * (cell + GAP) - GAP
    strip = min(96, (width - 2 * MARGIN - left) // max(1, len(photos)) - 8)
    top = MARGIN + 52 + strip + 40 + 62
    height = top + len(rows) * (cell + GAP) + 40
    sheet = Image.new("RGB", (width, height), PAPER)
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
    for number, (prompt, images) in enumerate(rows):
        y = top + number * (cell + GAP)
        draw.multiline_text((MARGIN, y + 4), "\n".join(textwrap.wrap(f"“{prompt}”", 22)), INK, _font(16), spacing=7)
        for index, image in enumerate(images):
            sheet.paste(_fit(image, cell), (MARGIN + left + index * (cell + GAP), y))
    draw.text((MARGIN, height - 36), footer, FAINT, _font(13))
    return sheet


def _fit(image: Image.Image, side: int) -> Image.Image:
    """The middle square of `image` at `side` pixels."""
    square = min(image.size)
    x, y = (image.width - square) // 2, (image.height - square) // 2
    cut = image.convert("RGB").crop((x, y, x + square, y + square))
    return cut.resize((side, side), Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
