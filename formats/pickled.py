"""Files of other tools that may be pickles: read without running anything that stands in them."""

from __future__ import annotations

import struct
from pathlib import Path

import torch


def is_safetensors(path: Path) -> bool:
    """By its ending or, since some tools write safetensors as `.bin`, by its first bytes."""
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 100 * 2**20


def read(path: Path, limit: int, what: str) -> object:
    """What a pickle of torch holds, tensors on the CPU. ValueError with the path where reading it would run code, or it is larger than `limit` bytes."""
    if path.stat().st_size > limit:
        raise ValueError(f"{str(path)!r} has {path.stat().st_size / 2**20:.0f} MB; {what} is much smaller. It looks like a model.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: pickle, zip, EOF, type errors
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"{str(path)!r} cannot be read without running code from it, or is damaged ({reason}). Convert it to safetensors where you trust it."
        ) from error
