"""Picture files: a reader for untrusted photos, and an atomic writer of PNG with 8 bits per channel."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, features

from . import leftovers

# Pillow's name of each supported format -> (endings, maximum of pixels). Pillow's other formats are refused: PostScript runs a program, and
# the others only add attack surface. The limits keep a decoded file below about 700 MB: Pillow's own pictures take 4 bytes per pixel, TIFF,
# WebP and AVIF need further buffers, and a baseline JPEG is reduced while it is decoded.
FORMATS = {
    "PNG": ((".png", ".apng"), 152e6),
    "JPEG": ((".jpg", ".jpeg", ".jpe", ".jfif"), 300e6),
    "WEBP": ((".webp",), 45e6),
    "AVIF": ((".avif",), 45e6),
    "HEIF": ((".heic", ".heif"), 45e6),  # only if another pack has added it to Pillow
    "TIFF": ((".tif", ".tiff"), 105e6),
    "BMP": ((".bmp",), 152e6),
    "GIF": ((".gif",), 45e6),
}
MAX_IN_SCANS = 105e6  # pixels of a JPEG in several scans (progressive): all its coefficients are in memory at once
MAX_PIXELS = 32e6  # a larger photo is divided by an integer on each side, which leaves at least 8 million
BAND = 2**22  # pixels that are reduced at a time
MAX_FILE = 2**30  # bytes
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG": "jpg"}  # Pillow may have been built without these


def write(pixels: np.ndarray, path: Path, parameters: str = "") -> None:
    """Write pixels [height, width, 3] in 0..1 to a temporary file beside `path`, bring it to the disk, then rename it to `path`.

    `parameters` describes how the picture was made, for people and other tools. OSError (disk full, read-only folder) leaves an older file untouched.
    """
    information = PngImagePlugin.PngInfo()
    if parameters:
        information.add_text("parameters", parameters)
    with leftovers.temporary(path.parent) as temporary:
        Image.fromarray(np.round(pixels.clip(0, 1) * 255).astype(np.uint8)).save(temporary.file, "PNG", pnginfo=information, compress_level=4)
        temporary.rename(path)


def readable() -> dict[str, str]:
    """Ending -> Pillow's name of the format, of all picture files that can be read."""
    Image.init()
    supported = [name for name in FORMATS if name in Image.OPEN and (name not in _FEATURES or features.check(_FEATURES[name]))]
    return {ending: name for name in supported for ending in FORMATS[name][0]}


def load(path: Path, formats: Sequence[str] = tuple(FORMATS)) -> Image.Image:
    """The picture in the file: its first frame, rotated by its EXIF orientation, in its own color mode.

    A picture of more than `MAX_PIXELS` is reduced by an integer, with the mean of each square of pixels.
    ValueError for any problem, beginning with the file's name.
    """
    try:
        with _regular(path) as file:
            picture, rotation = _decoded(file, formats)
        return picture if rotation is None else picture.transpose(rotation)
    except Exception as error:  # Pillow raises many types: OSError, SyntaxError, struct.error, EOFError, its own
        raise ValueError(f"{path.name!r} cannot be read: {_reason(error)}. Save it again as PNG or JPEG, or take it out of the folder.") from error


def read(path: Path) -> np.ndarray | None:
    """A picture from `write`, float32 [height, width, 3] in 0..1; None if it is missing or damaged."""
    try:
        return np.asarray(load(path, ("PNG",)).convert("RGB"), dtype=np.float32) / 255
    except ValueError:
        return None


def reduction(pixels: float) -> int:
    """The integer that divides each side of a picture with so many pixels."""
    return next(factor for factor in range(1, 100) if pixels <= MAX_PIXELS * factor**2)


def _regular(path: Path):
    """The open file. Pipes and devices are refused, because they could block the reader forever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not an ordinary file")
    if status.st_size > MAX_FILE:
        raise ValueError(f"it has {status.st_size / 2**20:.0f} MB, too much for a photo")
    return path.open("rb")


def _decoded(file, formats: Sequence[str]) -> tuple[Image.Image, Image.Transpose | None]:
    """The picture, and the rotation that its EXIF orientation requires."""
    opened = _opened(file, formats)
    assert opened.format is not None  # a constant of each of Pillow's readers
    jpeg = opened.format in ("JPEG", "MPO")
    pixels, limit = opened.width * opened.height, FORMATS["JPEG" if jpeg else opened.format][1]
    if jpeg and pixels > MAX_IN_SCANS and not _in_one_scan(file):
        limit = MAX_IN_SCANS
    if pixels > limit:
        raise ValueError(f"it claims {opened.width} x {opened.height} pixels, and at most {limit / 1e6:.0f} million can be read")
    factor = reduction(pixels)
    if jpeg and factor > 1:
        opened.draft(None, (opened.width // factor, opened.height // factor))  # by a power of two
        factor = reduction(opened.width * opened.height)
    opened.load()  # rotates a TIFF
    try:
        rotation = _ORIENTATIONS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:
        raise ValueError(f"its EXIF block, which holds its orientation, is damaged ({_reason(error)})") from error
    return _reduced(opened, factor) if factor > 1 else opened, rotation


def _opened(file, formats: Sequence[str]):
    """Pillow's picture, not yet decoded. `Image.open` is not used: it has one limit of pixels for all formats, which the host sets."""
    Image.init()
    start = file.read(16)
    problem = None
    for name in formats:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or (accepts is not None and accepts(start) is not True):
            continue
        try:
            file.seek(0)
            return factory(file, "")
        except Exception as error:  # a damaged header; another format may fit
            problem = problem or error
    raise ValueError(f"its header is damaged ({_reason(problem)})" if problem else f"it is not a picture in one of the formats {', '.join(formats)}")


def _in_one_scan(file) -> bool:
    """Does the first scan of this JPEG contain all its color components?"""
    file.seek(2)
    components = 0
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        marker, length = head[1], int.from_bytes(head[2:], "big") - 2
        body = file.read(max(0, length))
        if marker in (0xC0, 0xC1):
            components = body[5] if len(body) > 5 else 0
        elif 0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # progressive, lossless, arithmetic
            return False
        elif marker == 0xDA:
            return bool(body) and body[0] == components
    return False


def _reduced(picture: Image.Image, factor: int) -> Image.Image:
    """`picture` divided by `factor` on each side, one band of rows at a time to save memory."""
    deep = picture.mode.startswith("I") or picture.mode == "F"
    mode = "RGBA" if is_transparent(picture) else "RGB"
    size = -(-picture.width // factor), -(-picture.height // factor)
    rows = max(1, BAND // picture.width // factor) * factor
    result = np.empty(size[::-1], np.float32) if deep else Image.new(mode, size)
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        if isinstance(result, np.ndarray):
            columns, lines = np.arange(0, band.width, factor), np.arange(0, band.height, factor)
            sums = np.add.reduceat(np.add.reduceat(np.asarray(band, np.float32), lines, axis=0), columns, axis=1)
            counts = np.diff(np.append(lines, band.height))[:, None] * np.diff(np.append(columns, band.width))[None]
            result[top // factor : top // factor + len(lines)] = sums / counts
        else:
            result.paste(band.convert(mode).reduce(factor), (0, top // factor))
    if isinstance(result, Image.Image):
        return result
    return Image.fromarray(result) if picture.mode == "F" else Image.fromarray(np.rint(result).astype(np.int32 if picture.mode == "I" else np.uint16))


def is_transparent(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "transparency" in picture.info


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()).rstrip(".")[:200]
    return text if isinstance(error, (OSError, ValueError, SyntaxError)) and text else f"it is damaged ({type(error).__name__}{f': {text}' if text else ''})"
