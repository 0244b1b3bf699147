"""Safetensors files, written so that a crash never leaves half of one and the same content always gives the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

MAX_HEADER = 16 * 2**20  # bytes; a large checkpoint has one of 0.3 MB, the metadata of long trainings one or two MB


def write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write `tensors` and `metadata` to `path`, by way of a file beside it that is renamed when it is whole and on the disk.

    Tensors that lie on the CPU are written from where they are: there is no copy of a training state in memory. All of
    torch's ordinary types keep their bits (bfloat16, float16, int64, bool ...).
    Raises OSError (disk full, read-only folder) with the old file, if there was one, untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        prepare(tensors, beside, metadata)
        beside.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
    sync_folder(path.parent)
    return path


def prepare(tensors: dict[str, torch.Tensor], part: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the file `part`, which must not exist yet, down to the disk; the caller then gives it its real name. OSError leaves no file."""
    mode = _create(part)
    try:
        _save(_separate(tensors), part, metadata or None)
        part.chmod(mode)  # the library leaves 0600
        with part.open("r+b") as file:
            _canonical_header(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a safetensors file. ValueError with the path and the reason when it is damaged.

    What it unpacks to is no larger than the file: the library refuses data that overlap. The header is limited here.
    """
    try:
        check_header(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise ValueError(f"There is no file {str(path)!r}.") from None
    except RecursionError:
        raise ValueError(f"{str(path)!r} cannot be read as safetensors (its header nests too deep). Save or copy the file again.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as safetensors ({error}). Save or copy the file again.") from error


def check_header(path: Path) -> None:
    """ValueError for a header that is longer than any honest one; the library itself would take 100 MB of it. OSError from the disk."""
    if not path.is_file():
        raise FileNotFoundError(2, "No such file", str(path)) if not path.exists() else ValueError("it is not an ordinary file")
    with path.open("rb") as file:
        start = file.read(8)
    if len(start) == 8 and (length := struct.unpack("<Q", start)[0]) > MAX_HEADER:
        raise ValueError(f"its header claims {length / 2**20:.0f} MB")


def _create(path: Path) -> int:
    """Make the empty file, so that a folder nobody may write to is an OSError, and return the mode that the umask gives it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return os.fstat(handle).st_mode & 0o777
    finally:
        os.close(handle)


def _separate(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, contiguous, each over a storage of its own (the library refuses shared ones)."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        result[name] = value.clone() if place in seen else value
        seen.add(place)
    return result


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    try:
        save_file(tensors, path, metadata)
    except SafetensorError as error:  # how the library reports the disk's own errors
        raise OSError(f"{str(path.parent)!r} cannot be written to ({error}).") from error


def _canonical_header(file) -> None:
    """Put the metadata in sorted order, in place: the library writes them in the order of a hash map, anew in each process."""
    (length,) = struct.unpack("<Q", file.read(8))
    text = file.read(length)
    header = json.loads(text)
    metadata = header.pop("__metadata__", None)
    if not metadata:
        return
    ordered = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}, separators=(",", ":"), ensure_ascii=False).encode()
    if len(ordered) > length:
        raise RuntimeError("the safetensors library writes another JSON than expected; its header cannot be put in order")
    file.seek(8)
    file.write(ordered.ljust(length))
