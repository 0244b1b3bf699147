"""Safetensors files: a crash never leaves an incomplete one, and the same content always gives the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from . import leftovers

# The file format's names of torch's types
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

MAX_HEADER = 16 * 2**20  # bytes; a large checkpoint has 0.3 MB, the metadata of long trainings one or two MB


def write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write `tensors` and `metadata` to a temporary file beside `path`, bring it to the disk, then rename it to `path`.

    Tensors on the CPU are written without a copy in memory. All of torch's ordinary types keep their bits (bfloat16, float16, int64, bool ...).
    The library's `save_file` is not used: its own temporary file could not be recognized as ours after a crash.
    OSError (disk full, read-only folder) leaves an older file at `path` untouched.
    """
    path = Path(path)
    with leftovers.temporary(path.parent) as temporary:
        try:
            _serialize(tensors, metadata, temporary.file)
            temporary.rename(path)
        except OSError as error:
            raise OSError(f"A file cannot be written ({error.strerror or error}): {str(path)!r}") from error
    sync_folder(path.parent)
    return path


def prepare(tensors: dict[str, torch.Tensor], part: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the new file `part` and bring it to the disk; the caller renames it. FileExistsError if it exists; OSError leaves no file."""
    with part.open("xb"):  # outside of the block that removes `part`
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
    """Bring the names in `folder` to the disk, if the system supports it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a safetensors file. ValueError as `opened` raises it.

    The tensors are no larger than the file: the library refuses data that overlap.
    """
    while True:
        before = _identity(path)
        with opened(path) as file:
            content = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (not a mapping)
            if _identity(path) == before:
                return content
        # Another process replaced the file. The library opens it twice, so the header and the tensors may come from different files.


def metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors. ValueError as `opened` raises it."""
    with opened(path) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """The file as the library opens it. ValueError with the reason and the path if it is missing, damaged, or has a header beyond `MAX_HEADER`."""
    if not path.is_file():
        raise ValueError(f"{'This is not an ordinary file' if path.exists() else 'The file does not exist'}: {str(path)!r}")
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if len(start) == 8 and (length := struct.unpack("<Q", start)[0]) > MAX_HEADER:  # the library itself would read up to 100 MB of it
            raise ValueError(f"its header claims {length / 2**20:.0f} MB")
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = "its header is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"The file cannot be read as safetensors ({reason}). Download, copy or save it again: {str(path)!r}") from error


def _identity(path: Path) -> tuple[int, ...]:
    """Numbers that change when another file takes this name; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _serialize(tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None, file: BinaryIO) -> None:
    """Write the header's length, the header as JSON, and the tensors. Wide types come first, so that each tensor is aligned."""
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
