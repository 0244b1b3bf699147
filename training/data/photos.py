"""A folder of photos as people have them: rotated phone pictures, transparent cut-outs, 16-bit scans, mask files, one broken file."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from ...formats import picture_file, text_file

log = logging.getLogger(__name__)

MASKS = ("-masklabel", "_mask", "-mask", ".mask")  # NAME-masklabel.png is OneTrainer's; the others are written by hand and by older trainers
CAPTIONS = (".txt", ".caption")
LARGEST_CAPTION = 2**16  # bytes
_OTHER_PICTURES = {
    ".heic": "HEIC is not read here: convert it to JPEG (iPhone: Settings > Camera > Formats > Most Compatible)",
    ".avif": "this installation of Pillow cannot read AVIF: update Pillow or convert it to JPEG",
    ".webp": "this installation of Pillow cannot read WebP: convert it to JPEG",
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".rw2", ".orf"), "raw photos are not read: export it as JPEG or PNG"),
    **dict.fromkeys((".jxl", ".jp2", ".psd", ".tga", ".ico", ".svg", ".exr", ".hdr"), "this format is not read: save it as PNG or JPEG"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "a video, not a photo"),
}
_OTHER_PICTURES[".heif"] = _OTHER_PICTURES[".heic"]
_SYSTEM_FILES = {"thumbs.db", "desktop.ini"}
_NAMED = 4  # files for each reason, in a remark


@dataclass(frozen=True)
class Photo:
    """pixels: [height, width, 3] float32 in 0..1; alpha: [height, width] in 0..1 from transparency and mask file, or None; caption: "" = no file."""

    name: str
    pixels: np.ndarray
    alpha: np.ndarray | None
    caption: str


@dataclass
class PhotoFolder:
    """The content of a folder. masks, captions: the files that belong to a photo. remarks: a sentence for each reason why files are skipped."""

    photos: list[Path]
    masks: dict[Path, Path] = field(default_factory=dict)
    captions: dict[Path, Path] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def files(self) -> list[Path]:
        """All files that are read, in an order that depends on their names alone."""
        return [file for photo in self.photos for file in (photo, self.masks.get(photo), self.captions.get(photo)) if file]


def look(folder: Path) -> PhotoFolder:
    """Sort the files of `folder` by name (so that a seed means the same everywhere) and by type. Opens no file.

    NAME-masklabel.png, NAME_mask.png, NAME-mask.png and NAME.mask.png are the mask of the photo NAME where there is one.
    Raises ValueError if there is no photo, naming the files that are there.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 (Path's own raises for a name that is too long)
        raise ValueError(f"There is no folder {str(folder)[:300]!r}.")
    try:
        files = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name.lower() not in _SYSTEM_FILES and path.is_file())
    except OSError as error:
        raise ValueError(f"The folder {folder.name!r} cannot be read: {error.strerror}. Make it readable for ComfyUI: {folder}") from error
    endings = picture_file.readable()
    pictures = [path for path in files if path.suffix.lower() in endings]
    stems = {path.stem for path in pictures}
    owners = {path: owner for path in pictures if (owner := _owner(path.stem)) is not None}
    orphans = [path for path, owner in owners.items() if owner not in stems]
    lonely = [path for path in orphans if path.stem.endswith(MASKS[0])]  # this ending is only used for masks
    for path in orphans:
        del owners[path]
    found = PhotoFolder([path for path in pictures if path not in owners and path not in lonely])
    left_out: dict[str, list[str]] = {}
    if lonely:
        left_out["no photo of that name lies beside the mask"] = [path.name for path in lonely]
    masks: dict[str, Path] = {}
    for path, owner in owners.items():
        if owner in masks or owner not in {photo.stem for photo in found.photos}:
            left_out.setdefault("another mask of that photo is used", []).append(path.name)
        else:
            masks[owner] = path
    texts = {path.stem + path.suffix.lower(): path for path in files if path.suffix.lower() in CAPTIONS}
    for photo in found.photos:
        if photo.stem in masks:
            found.masks[photo] = masks[photo.stem]
        caption = next((texts[photo.stem + ending] for ending in CAPTIONS if photo.stem + ending in texts), None)
        if caption:
            found.captions[photo] = caption
    used = {*found.files(), *lonely, *owners}
    for path in files:
        if path not in used:
            left_out.setdefault(_why(path, found), []).append(path.name)
    if masks:
        found.remarks.append(f"Used as masks: {_names([path.name for path in masks.values()])}.")
    if doubtful := [path.name for path in orphans if path not in lonely]:
        found.remarks.append(f"Read as a photo, not as a mask, since no photo of that name lies beside it: {_names(doubtful)}.")
    found.remarks += [f"Left out ({reason}): {_names(names)}." for reason, names in left_out.items()]
    if not found.photos:
        told = f" {' '.join(found.remarks)}" if found.remarks else ""
        raise ValueError(
            f"The folder {folder.name!r} has no pictures that can be read.{told} Put three to six photos of the subject there ({', '.join(endings)}): {folder}"
        )
    return found


def photo_files(folder: Path) -> list[Path]:
    """The photos in `folder` without masks, sorted by name. Raises ValueError if there are none."""
    return look(folder).photos


def read_photos(folder: Path, tell: Callable[[str], None] | None = None) -> list[Photo]:
    """Read every photo of `folder` with its mask and caption. Skipped files are reported to `tell`, or to the log.

    ValueError names the file that cannot be read and why: all of them are read before anything is trained.
    """
    found = look(folder)
    for remark in found.remarks:
        (tell or (lambda sentence: log.warning("Kindred: folder %r: %s", folder.name, sentence)))(remark)
    return [read_photo(path, found.masks.get(path), found.captions.get(path)) for path in found.photos]


def read_photo(path: Path, mask: Path | None = None, caption: Path | None = None) -> Photo:
    """One photo: rotated as its EXIF says, alpha apart, any color mode and bit depth converted to RGB in 0..1.

    mask  a picture of the same size, white where the subject is. ValueError begins with the name of the file that is wrong.
    """
    pixels, alpha = _read(path)
    if mask is not None:
        shades, _ = _read(mask, matte=0)
        if shades.shape != pixels.shape:
            (rows, columns), (height, width) = shades.shape[:2], pixels.shape[:2]
            raise ValueError(f"{mask.name!r} is {columns} x {rows}, its photo {path.name!r} is {width} x {height}. A mask must have the size of its photo.")
        white = shades.mean(axis=2)  # where it is transparent, it is black
        alpha = white if alpha is None else np.minimum(white, alpha)
    if alpha is not None and alpha.min() == 1:
        alpha = None
    return Photo(path.name, pixels, alpha, read_caption(caption) if caption else "")


def read_caption(file: Path) -> str:
    """The text in one line. Raises ValueError that begins with the file's name."""
    try:
        return " ".join(text_file.read(file, LARGEST_CAPTION, "the caption of a photo").split())
    except OSError as error:
        raise ValueError(f"{file.name!r}, the caption of a photo, cannot be read: {error.strerror}.") from error


def fingerprint(folder: Path) -> str:
    """A fingerprint that changes with every photo, mask and caption in `folder`."""
    digest = hashlib.sha256()
    for path in look(folder).files():
        content = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(2**20):
                content.update(part)
        digest.update(os.fsencode(path.name) + b"\0" + content.digest())
    return digest.hexdigest()


def _owner(stem: str) -> str | None:
    """The name of the photo that a mask of this name would belong to."""
    return next((stem.removesuffix(ending) for ending in MASKS if stem.endswith(ending) and stem != ending), None)


def _why(path: Path, found: PhotoFolder) -> str:
    """Why a file is skipped."""
    ending = path.suffix.lower()
    if ending in _OTHER_PICTURES:
        return _OTHER_PICTURES[ending]
    if ending in CAPTIONS:
        stems = {photo.stem for photo in found.photos}
        return "another text file is the caption of that photo" if path.stem in stems else "no photo of that name lies beside the text"
    return "not a photo"


def _names(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _read(path: Path, matte: int = 128) -> tuple[np.ndarray, np.ndarray | None]:
    picture = picture_file.load(path)
    try:
        return _arrays(picture, matte)
    except Exception as error:
        raise ValueError(f"{path.name!r} cannot be read: {error}. Save it again as PNG or JPEG, or take it out of the folder.") from error


def _arrays(picture: Image.Image, matte: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(pixels [height, width, 3], alpha [height, width] or None) in 0..1, a band of rows at a time. Transparent pixels become gray of `matte`."""
    transparent = picture_file.is_transparent(picture)
    scale = _scale(picture)
    pixels = np.empty((picture.height, picture.width, 3), np.float32)
    alpha = np.empty(pixels.shape[:2], np.float32) if transparent else None
    rows = max(1, 2**21 // picture.width)
    for top in range(0, picture.height, rows):
        part = slice(top, min(top + rows, picture.height))
        band = picture.crop((0, part.start, picture.width, part.stop))
        if alpha is not None:
            band = band.convert("RGBA")
            cover = band.getchannel("A")
            alpha[part] = np.asarray(cover, dtype=np.float32) / 255
            band = Image.composite(band.convert("RGB"), Image.new("RGB", band.size, (matte,) * 3), cover)
        if scale is None:
            pixels[part] = np.asarray(band.convert("RGB"), dtype=np.float32) / 255
        else:
            pixels[part] = np.clip(np.asarray(band, dtype=np.float32) / scale, 0, 1)[..., None]
    if not np.isfinite(pixels).all():
        raise ValueError("it holds values that are not numbers")
    return pixels, None if alpha is None or alpha.min() == 1 else alpha


def _scale(picture: Image.Image) -> float | None:
    """The white value of a picture of 16 or 32 bits, which Pillow's own conversion would clip at 255; None for 8 bits."""
    if picture.mode == "F":
        return 1.0
    if picture.mode == "I" and cast(int, picture.getextrema()[1]) <= 255:
        return 255.0
    return 65535.0 if picture.mode.startswith("I") else None
