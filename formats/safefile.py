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
from safetensors.torch import save


def write(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    """Write `tensors` and `metadata` to `path`, by way of a file beside it that is renamed when it is whole and on the disk.

    Raises OSError (disk full, read-only folder) with the old file, if there was one, untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_bytes(path, _canonical(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata=metadata or None)))
    return path


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors (on the CPU) and the metadata of a safetensors file. ValueError with the path and the reason when it is damaged."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise ValueError(f"There is no file {str(path)!r}.") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as safetensors ({error}). Save or copy the file again.") from error


def _write_bytes(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)  # the umask makes it 0644
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()
    if hasattr(os, "O_DIRECTORY"):  # the new name itself, where a folder can be synced
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _canonical(content: bytes) -> bytes:
    """The same file with its metadata in sorted order: the library writes them in the order of a hash map, anew in each process."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", None)
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
