"""The demo's files: the base model and the photos where its server finds them, and the comparison picture. None of anybody else's is replaced."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / ".kindred" / "base"
STORED = Path(__file__).resolve().parent / "base" / "miniature.safetensors.xz"


class Failure(Exception):
    """Ends the demo with one sentence."""


def prepare_checkpoint(options) -> str:
    """The name under which CheckpointLoaderSimple finds the base model."""
    folder = BASE / "models" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    if options.checkpoint:
        path = options.checkpoint.expanduser().resolve()
        if not path.is_file():
            raise Failure(f"There is no checkpoint {path}. Correct --checkpoint, or leave it out to use the small one.")
        if path.suffix != ".safetensors":
            raise Failure(f"{path.name} is no .safetensors file. Other formats can carry code; convert it first.")
        place = folder / path.name
        if (place.is_symlink() or place.exists()) and not same(path, place):  # another file of that name, which stays
            place = folder / f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.safetensors"
        link(path, place)
        return place.name
    if STORED.is_file():
        path = folder / f"kindred-miniature-{hashlib.sha256(STORED.read_bytes()).hexdigest()[:8]}.safetensors"
        if not path.is_file():
            from base import storage

            print("kindred: unpacking the miniature base ...")
            storage.expand(STORED, path)
        return path.name
    path = folder / "kindred-small-random.safetensors"  # a copy without the stored base
    if not path.is_file():
        print("kindred: making a small base model ...")
        script = Path(__file__).resolve().parent / "random_base.py"
        made = subprocess.run([sys.executable, script, path], env={**os.environ, "PYTHONPATH": os.environ["COMFYUI_PATH"]}, capture_output=True, text=True)
        if made.returncode:
            raise Failure(f"The small base model could not be made: {(made.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return path.name


def prepare_judge(base: Path) -> str:
    """Let a server in the folder `base` score with the miniature world's judge: Train Concept and Evaluate Pictures then offer it as a model. Its name."""
    folder = base / "models" / "evaluation" / "miniature-judge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "kindred-judge"}\n')
    link(Path(__file__).resolve().parent / "judge_pack", base / "custom_nodes" / "kindred-demo-judge")
    return folder.name


def prepare_photos(options) -> tuple[str, list[Image.Image], str]:
    """(folder inside the input folder, the photos as pictures, class word). The folder's name follows the photos' content."""
    from PIL import ImageOps

    if options.photos:
        source = options.photos.expanduser().resolve()
        if not source.is_dir():
            raise Failure(f"There is no folder {source}. Correct --photos.")
        files = sorted(path for path in source.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".txt"))
        content = {path.name: path.read_bytes() for path in files}
        class_word = options.class_word
    else:
        content, class_word = drawn(options.subject)
        class_word = options.class_word or class_word
    pictures = {name: data for name, data in content.items() if not name.endswith(".txt")}
    if not pictures:
        raise Failure(f"{options.photos} has no pictures. Put three to six photos of the subject there.")
    digest = hashlib.sha256(b"".join(name.encode() + data for name, data in sorted(content.items()))).hexdigest()[:8]
    folder = f"kindred-{digest}"
    put_photos(content, BASE / "input" / folder)
    shown = []
    for name, data in pictures.items():
        try:
            shown.append(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Failure(f"The photo {name!r} cannot be read: {error}. Save it again as PNG or JPEG, or take it out of the folder.") from None
    return folder, shown, class_word


def put_photos(content: dict[str, bytes], place: Path) -> None:
    """Make the folder `place` with exactly these files. Whole or not at all: another run may be reading the same photos."""
    if place.is_dir() and {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == content:
        return
    beside = place.with_name(f".{place.name}.{os.getpid()}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for name, data in content.items():
        (beside / name).write_bytes(data)
    shutil.rmtree(place, ignore_errors=True)  # half of it, from a run that was killed, or changed by hand
    try:
        beside.rename(place)
    except OSError:  # another run was faster
        shutil.rmtree(beside, ignore_errors=True)


def drawn(name: str) -> tuple[dict[str, bytes], str]:
    """The "photos" of one of the miniature world's subjects as PNG files, and its class word."""
    from world.subjects import SUBJECTS, photos

    if name not in SUBJECTS:
        raise Failure(f"There is no drawn subject {name!r}. There are {', '.join(SUBJECTS)}.")
    content = {}
    for index, picture in enumerate(photos(name, 256)):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        content[f"{name}-{index + 1}.png"] = buffer.getvalue()
    return content, SUBJECTS[name].class_word


def keep(sheet: Image.Image, folder: Path, name: str) -> Path:
    """Write the picture as NAME.png, or with a number behind it: an earlier picture is never replaced. The path that it got."""
    folder.mkdir(parents=True, exist_ok=True)
    number, path = 1, folder / f"{name}.png"
    while True:
        try:
            with path.open("xb") as file:
                sheet.save(file, "PNG")
            return path
        except FileExistsError:
            number += 1
            path = folder / f"{name}_{number}.png"
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def same(path: Path, place: Path) -> bool:
    """Is `place` a link to `path`, or a copy of it that `link` made?"""
    if place.is_symlink():
        return place.resolve() == path
    one, other = path.stat(), place.stat()
    return (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)


def link(source: Path, place: Path) -> None:
    """`place` becomes another name of `source`; a copy where the system allows no link (a pack is copied without `.kindred`)."""
    if place.is_symlink() or place.exists():
        if place.resolve() == source.resolve():
            return
        place.unlink() if place.is_symlink() or place.is_file() else shutil.rmtree(place)
    try:
        place.symlink_to(source, target_is_directory=source.is_dir())
    except OSError:
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns(".kindred", ".git", "__pycache__"))
        else:
            shutil.copy2(source, place)
