"""Safetensors files, written so that a crash never leaves half of one and the same content always gives the same bytes."""

from __future__ import annotations

import contextlib
import json
import os
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
    content = _canonical(save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata=metadata or None))
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
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


def read_metadata(path: Path) -> dict[str, str]:
    """Only the metadata; the tensors are not touched. ValueError as `read`."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as safetensors ({error}). Save or copy the file again.") from error


def _canonical(content: bytes) -> bytes:
    """The same file with its metadata in sorted order: the library writes them in the order of a hash map, anew in each process."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8:8 + length])
    metadata = header.pop("__metadata__", None)
    if metadata:
        header = {"__metadata__": dict(sorted(metadata.items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    return struct.pack("<Q", len(text)) + text + content[8 + length:]
