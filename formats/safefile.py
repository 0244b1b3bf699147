"""Safetensors files, written so that a crash never leaves half of one and the same content always gives the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from . import leftovers

# The file format's names of torch's types; a type that is not here raises.
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

MAX_HEADER = 16 * 2**20  # bytes; a large checkpoint has one of 0.3 MB, the metadata of long trainings one or two MB


def write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write `tensors` and `metadata` to `path`, by way of a file beside it that is renamed when it is whole and on the disk.

    Tensors that lie on the CPU are written from where they are: there is no copy of a training state in memory. All of
    torch's ordinary types keep their bits (bfloat16, float16, int64, bool ...). We write the bytes ourselves: the library's
    `save_file` would put them into another hidden file first, which nobody could tell for ours after a crash.
    Raises OSError (disk full, read-only folder) with the old file, if there was one, untouched.
    """
    path = Path(path)
    with leftovers.temporary(path.parent) as temporary:
        try:
            _serialize(tensors, metadata, temporary.file)
            temporary.rename(path)
        except OSError as error:
            raise OSError(f"{str(path.parent)!r} cannot be written to ({error.strerror or error}).") from error
    sync_folder(path.parent)
    return path


def prepare(tensors: dict[str, torch.Tensor], part: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the file `part`, which must not exist yet, down to the disk; the caller then gives it its real name. OSError leaves no file."""
    with part.open("xb") as file:  # FileExistsError leaves the other one as it is
        pass
    try:
        with part.open("wb") as file:
            _serialize(tensors, metadata, file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
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
    while True:
        check_header(path)
        try:
            about = _about(path)
            with safe_open(path, framework="pt", device="cpu") as file:
                content = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (no mapping)
            if _about(path) == about:
                return content
            # Another process replaced the file. The library opens it twice, so the header may be of one file and the tensors of the other.
        except RecursionError:
            raise ValueError(f"{str(path)!r} cannot be read as safetensors (its header nests too deep). Save or copy the file again.") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{str(path)!r} cannot be read as safetensors ({error}). Save or copy the file again.") from error


def _about(path: Path) -> tuple[int, ...]:
    """What differs between two files that had this name one after the other."""
    about = path.stat()
    return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_ctime_ns, about.st_size


def check_header(path: Path) -> None:
    """ValueError with the path where there is no file, or its header is longer than any honest one; the library itself would take 100 MB of it."""
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}." if not path.exists() else f"{str(path)!r} is not an ordinary file.")
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read as safetensors ({error}). Save or copy the file again.") from error
    if len(start) == 8 and (length := struct.unpack("<Q", start)[0]) > MAX_HEADER:
        raise ValueError(f"{str(path)!r} cannot be read as safetensors (its header claims {length / 2**20:.0f} MB). Save or copy the file again.")


def _serialize(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, file: BinaryIO) -> None:
    """The format's bytes: the header's length, the header as JSON, the tensors. Wide types come first, so that each is aligned."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {"dtype": _TYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        if tensors[name].numel():
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
