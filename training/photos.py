"""A folder of photos as people have them: turned phone pictures, transparent cut-outs, scans in 16 bits, one broken file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
LARGEST = 178_956_970  # pixels; Pillow's own limit against files that claim to be enormous


@dataclass(frozen=True)
class Photo:
    """pixels [height, width, 3] float32 in 0..1; alpha [height, width] likewise or None; caption "" without a file of its own."""

    name: str
    pixels: np.ndarray
    alpha: np.ndarray | None
    caption: str


def photo_files(folder: Path) -> list[Path]:
    """The pictures in `folder`, sorted by name so that a seed means the same everywhere. ValueError when there are none."""
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))
    if not files:
        raise ValueError(f"The folder {str(folder)!r} has no pictures. Put three to six photos of the subject there ({', '.join(EXTENSIONS)}).")
    return files


def read_photos(folder: Path) -> list[Photo]:
    """Every photo of `folder`, read whole. A text file of the same name holds its caption.

    ValueError names the file that cannot be read and why: all of them are read before anything is trained.
    """
    return [read_photo(path) for path in photo_files(folder)]


def read_photo(path: Path) -> Photo:
    """One photo: turned as its camera says, its alpha kept apart, any colour mode or bit depth brought to RGB in 0..1."""
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > LARGEST:
                raise ValueError(f"it claims {opened.width} x {opened.height} pixels")
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"The photo {path.name!r} cannot be read: {error}. Save it again as PNG or JPEG, or take it out of the folder.") from error
    alpha = None
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        alpha = np.asarray(picture.getchannel("A"), dtype=np.float32) / 255
        picture = Image.composite(picture.convert("RGB"), Image.new("RGB", picture.size, (128, 128, 128)), picture.getchannel("A"))
        alpha = None if alpha.min() == 1 else alpha
    return Photo(path.name, _rgb(picture), alpha, _caption(path))


def fingerprint(folder: Path) -> str:
    """Changes when a photo or caption in `folder` does."""
    digest = hashlib.sha256()
    for path in photo_files(folder):
        for part in (path, path.with_suffix(".txt")):
            if part.is_file():
                digest.update(part.name.encode() + b"\0" + hashlib.sha256(part.read_bytes()).digest())
    return digest.hexdigest()


def _rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 and 32 bits: Pillow's own conversion would cut at 255
        values = np.asarray(picture, dtype=np.float32)
        whole = 65535.0 if picture.mode.startswith("I") else 1.0
        return np.repeat(np.clip(values / (whole if values.max() > 255 or picture.mode != "I" else 255.0), 0, 1)[..., None], 3, axis=-1)
    return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255


def _caption(path: Path) -> str:
    file = path.with_suffix(".txt")
    if not file.is_file():
        return ""
    try:
        return " ".join(file.read_text("utf-8-sig").split())
    except UnicodeDecodeError:
        raise ValueError(f"The caption file {file.name!r} is not written in UTF-8. Save it as UTF-8 text.") from None
