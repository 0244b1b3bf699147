"""Pictures on disk: one reader for photos of any origin, and PNG with 8 bits a channel, written so that a crash never leaves half of one."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, features

from . import leftovers

# Pillow's name of each format that is read -> (endings, most pixels). All else that Pillow can open stays closed: PostScript runs a
# program, and the others only widen what a hostile file can reach. The limits hold what a file unpacks to below about 700 MB:
# Pillow's own pictures take 4 bytes a pixel, TIFF, WebP and AVIF buffers beside them, and a plain JPEG is reduced while it is decoded.
FORMATS = {
    "PNG": ((".png", ".apng"), 152e6),
    "JPEG": ((".jpg", ".jpeg", ".jpe", ".jfif"), 300e6),
    "WEBP": ((".webp",), 45e6),
    "AVIF": ((".avif",), 45e6),
    "HEIF": ((".heic", ".heif"), 45e6),  # only where another pack has taught Pillow to
    "TIFF": ((".tif", ".tiff"), 105e6),
    "BMP": ((".bmp",), 152e6),
    "GIF": ((".gif",), 45e6),
}
IN_SCANS = 105e6  # pixels of a JPEG in several scans (progressive): its coefficients are held as a whole
KEPT = 32e6  # pixels; a larger photo is divided by a whole number on each side, so at least 8 million are left
BAND = 2**22  # pixels that are reduced at a time
LARGEST_FILE = 2**30  # bytes
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FEATURES = {"WEBP": "webp", "AVIF": "avif", "JPEG": "jpg"}  # what Pillow may have been built without


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


def readable() -> dict[str, str]:
    """Endings of the picture files that can be read here -> Pillow's name of the format."""
    Image.init()
    there = [name for name in FORMATS if name in Image.OPEN and (name not in _FEATURES or features.check(_FEATURES[name]))]
    return {ending: name for name in there for ending in FORMATS[name][0]}


def load(path: Path, formats: Sequence[str] = tuple(FORMATS)) -> Image.Image:
    """The picture in the file: its first frame, turned as the camera says, in whatever colour mode it has.

    More than `KEPT` pixels are reduced by a whole number, by the mean of each square of pixels.
    ValueError begins with the file's name and says what is wrong, whatever that is.
    """
    try:
        with _regular(path) as file:
            picture, turn = _decoded(file, formats)
        return picture if turn is None else picture.transpose(turn)
    except Exception as error:  # Pillow raises many kinds: OSError, SyntaxError, struct.error, EOFError, its own
        raise ValueError(f"{path.name!r} cannot be read: {_reason(error)}. Save it again as PNG or JPEG, or take it out of the folder.") from error


def read(path: Path) -> np.ndarray | None:
    """What `write` wrote, float32 [height, width, 3] in 0..1; None when it is not there or damaged."""
    try:
        return np.asarray(load(path, ("PNG",)).convert("RGB"), dtype=np.float32) / 255
    except ValueError:
        return None


def reduction(pixels: float) -> int:
    """By what a picture of so many pixels is divided on each side."""
    return next(factor for factor in range(1, 100) if pixels <= KEPT * factor**2)


def _regular(path: Path):
    """The open file. A pipe or a device could keep the reader waiting for ever."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is not an ordinary file")
    if found.st_size > LARGEST_FILE:
        raise ValueError(f"it has {found.st_size / 2**20:.0f} MB, more than a photo has")
    return path.open("rb")


def _decoded(file, formats: Sequence[str]) -> tuple[Image.Image, Image.Transpose | None]:
    """The picture, and how it must be turned."""
    opened = _opened(file, formats)
    jpeg = opened.format in ("JPEG", "MPO")
    pixels, most = opened.width * opened.height, FORMATS["JPEG" if jpeg else str(opened.format)][1]
    if jpeg and pixels > IN_SCANS and not _in_one_scan(file):
        most = IN_SCANS
    if pixels > most:
        raise ValueError(f"it claims {opened.width} x {opened.height} pixels, and {most / 1e6:.0f} million are the most here")
    factor = reduction(pixels)
    if jpeg and factor > 1:
        opened.draft(None, (opened.width // factor, opened.height // factor))  # by a power of two
        factor = reduction(opened.width * opened.height)
    opened.load()  # TIFF turns itself here
    try:
        turn = _TURNS.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:
        raise ValueError(f"its EXIF block, which says how it must be turned, is damaged ({_reason(error)})") from error
    return _reduced(opened, factor) if factor > 1 else opened, turn


def _opened(file, formats: Sequence[str]):
    """Pillow's picture, not yet decoded. `Image.open` is not used: it has one limit of pixels for all formats, which belongs to the host."""
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
        except Exception as error:  # a damaged head; another format may fit
            problem = problem or error
    raise ValueError(f"its head is damaged ({_reason(problem)})" if problem else f"it is not a picture in one of the formats {', '.join(formats)}")


def _in_one_scan(file) -> bool:
    """Does the first scan of this JPEG hold all its colours at once?"""
    file.seek(2)
    components = 0
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        kind, length = head[1], int.from_bytes(head[2:], "big") - 2
        body = file.read(max(0, length))
        if kind in (0xC0, 0xC1):
            components = body[5] if len(body) > 5 else 0
        elif 0xC2 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # progressive, lossless, arithmetic
            return False
        elif kind == 0xDA:
            return bool(body) and body[0] == components
    return False


def _reduced(picture: Image.Image, factor: int) -> Image.Image:
    """`picture` divided by `factor`, a band of rows at a time, so that no second picture of its size is made."""
    deep = picture.mode.startswith("I") or picture.mode == "F"
    mode = "RGBA" if is_transparent(picture) else "RGB"
    size = -(-picture.width // factor), -(-picture.height // factor)
    rows = max(1, BAND // picture.width // factor) * factor
    numbers = np.empty(size[::-1] if deep else (0, 0), np.float32)
    result = Image.new(mode, (0, 0) if deep else size)
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        if deep:
            columns, lines = np.arange(0, band.width, factor), np.arange(0, band.height, factor)
            sums = np.add.reduceat(np.add.reduceat(np.asarray(band, np.float32), lines, axis=0), columns, axis=1)
            counts = np.diff(np.append(lines, band.height))[:, None] * np.diff(np.append(columns, band.width))[None]
            numbers[top // factor : top // factor + len(lines)] = sums / counts
        else:
            result.paste(band.convert(mode).reduce(factor), (0, top // factor))
    if not deep:
        return result
    return Image.fromarray(numbers) if picture.mode == "F" else Image.fromarray(np.rint(numbers).astype(np.int32 if picture.mode == "I" else np.uint16))


def is_transparent(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "transparency" in picture.info


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split()).rstrip(".")[:200]
    return text if isinstance(error, (OSError, ValueError, SyntaxError)) and text else f"it is damaged ({type(error).__name__}{f': {text}' if text else ''})"
