"""Photos for tests that train: drawn by the demo's miniature world, so that they need nothing from outside of the repository."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path

from .host import ROOT

SIDES = ((160, 120), (128, 128), (120, 160), (200, 150), (144, 144))


@functools.cache
def _subjects():
    """`world.subjects` of the demo under a name of its own; the demo's folder on sys.path would shadow the host's `server`."""
    folder = ROOT / "dev" / "demo" / "world"
    spec = importlib.util.spec_from_file_location("kindred_demo_world", folder / "__init__.py", submodule_search_locations=[str(folder)])
    sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])
    return importlib.import_module(f"{spec.name}.subjects")


def draw_photos(subject: str, folder: Path) -> list[Path]:
    """Five JPEG files of a subject in different shapes, as a camera and a phone give them."""
    paths = []
    for index, (picture, (width, height)) in enumerate(zip(_subjects().photos(subject, 200), SIDES, strict=True)):
        left, top = (200 - width) // 2, 200 - height
        path = folder / f"{index:02}.jpg"
        picture.crop((left, top, left + width, top + height)).save(path, quality=92)
        paths.append(path)
    return paths
