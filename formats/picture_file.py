"""Pictures on disk as PNG with 8 bits a channel, written so that a crash never leaves half of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from . import leftovers


def write(pixels: np.ndarray, path: Path, parameters: str = "") -> None:
    """Write pixels [height, width, 3] in 0..1 by way of a file beside `path` that is renamed when it is whole and on the disk.

    `parameters` tells people and other tools how it was made. OSError (disk full, read-only folder) leaves what was there untouched.
    """
    information = PngImagePlugin.PngInfo()
    if parameters:
        information.add_text("parameters", parameters)
    with leftovers.part(path.parent) as part:
        Image.fromarray(np.round(pixels.clip(0, 1) * 255).astype(np.uint8)).save(part.file, "PNG", pnginfo=information, compress_level=4)
        part.become(path)


def read(path: Path) -> np.ndarray | None:
    """What `write` wrote, float32 [height, width, 3] in 0..1; None when it is not there or damaged."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
