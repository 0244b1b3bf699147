"""Photos for tests that train: drawn by the demo's miniature world, so that they need nothing from outside of the repository."""

from __future__ import annotations

import importlib
from pathlib import Path

from .standalone import script

SIDES = ((160, 120), (128, 128), (120, 160), (200, 150), (144, 144))


def _subjects():
    return importlib.import_module(f"{script('dev/demo/world').__name__}.subjects")


def draw_photos(subject: str, folder: Path) -> list[Path]:
    """Five JPEG files of a subject in different shapes, as a camera and a phone give them."""
    paths = []
    for index, (picture, (width, height)) in enumerate(zip(_subjects().photos(subject, 200), SIDES, strict=True)):
        left, top = (200 - width) // 2, 200 - height
        path = folder / f"{index:02}.jpg"
        picture.crop((left, top, left + width, top + height)).save(path, quality=92)
        paths.append(path)
    return paths
