"""Draws the world's two posters, for the README and for the eye:

    python dev/demo/world/poster.py FOLDER [TILE]

``world.png``: every class, colour, accessory and place at least once. ``subjects.png``: the personal subjects' photos.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from world import scene, subjects


def _sheet(rows: list[list[Image.Image]], tile: int, gap: int) -> Image.Image:
    width, height = len(rows[0]), len(rows)
    sheet = Image.new("RGB", (width * (tile + gap) - gap, height * (tile + gap) - gap), (255, 255, 255))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (tile + gap), y * (tile + gap)))
    return sheet


def world(tile: int) -> Image.Image:
    """Classes across, accessories down; colours and places walk along the diagonals."""
    colours = list(scene.COLOURS)
    return _sheet(
        [
            [
                scene.named(creature, colours[(x + 3 * y) % len(colours)], accessory, scene.PLACES[(x + 2 * y) % len(scene.PLACES)], seed=40 + y).draw(tile)
                for x, creature in enumerate(scene.CLASSES)
            ]
            for y, accessory in enumerate(scene.ACCESSORIES)
        ],
        tile,
        tile // 32,
    )


def photos(tile: int) -> Image.Image:
    """One subject a row."""
    return _sheet([subjects.photos(name, tile) for name in subjects.SUBJECTS], tile, tile // 32)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder, size = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 160
    folder.mkdir(parents=True, exist_ok=True)
    world(size).save(folder / "world.png", optimize=True)
    photos(size).save(folder / "subjects.png", optimize=True)
