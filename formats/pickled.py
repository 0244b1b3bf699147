"""Files of other tools that may be pickles: read without running anything that stands in them, and without unpacking more than they hold."""

from __future__ import annotations

import pickletools
import struct
import zipfile
from pathlib import Path

import torch

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # how torch's files began before they were zip archives
_LEGACY_PICKLES = 5  # magic number, version, system, content, keys of the tensors' data
MOST_OPCODES = 2_000_000  # of a pickle; a checkpoint of 2,000 tensors has 70,000
MOST_PICKLE = 16 * 2**20  # bytes of the pickle itself, without the tensors' data
# What torch's reader of weights would call by itself, but no file of weights needs: it makes objects of any size from a few bytes.
_FORBIDDEN = {"bytearray", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass", "_rebuild_nested_tensor"}


def is_safetensors(path: Path) -> bool:
    """By its ending or, since some tools write safetensors as `.bin`, by its first bytes."""
    if path.suffix.lower() == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 100 * 2**20


def read(path: Path, limit: int, what: str) -> object:
    """What a pickle of torch holds, tensors on the CPU.

    ValueError with the path where reading it would run code, where it or what it unpacks to is larger than `limit` bytes, or where it is damaged.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is not an ordinary file.")
    if path.stat().st_size > limit:
        raise ValueError(f"{str(path)!r} has {path.stat().st_size / 2**20:.0f} MB; {what} is much smaller. It looks like a model.")
    try:
        _check_size(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(content, limit)
    except Exception as error:  # torch raises many kinds: pickle, zip, EOF, type errors
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"{str(path)!r} cannot be read without running code from it, or is damaged ({reason}). Convert it to safetensors where you trust it."
        ) from error
    return content


def _check_size(path: Path) -> None:
    """ValueError for an archive that unpacks to more than it is (torch itself never compresses), and for a pickle that makes much from little."""
    with path.open("rb") as file:
        begins = file.read(4)  # by which torch itself tells them apart
        file.seek(0)
        if begins != b"PK\x03\x04":
            for index in range(_LEGACY_PICKLES):
                first = _check_pickle(file)
                if index == 0 and first != _LEGACY_MAGIC:
                    raise ValueError("it is not a file of torch")
            return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed, which torch's files are not")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("it unpacks to more than it holds")
            for entry in entries:
                if entry.filename.lower().endswith("data.pkl"):
                    if entry.file_size > MOST_PICKLE:
                        raise ValueError(f"its list of tensors has {entry.file_size / 2**20:.0f} MB")
                    with archive.open(entry) as pickle:
                        _check_pickle(pickle)


def _check_pickle(file) -> object:
    """Read one pickle without carrying it out; gives the number or text that it ends with."""
    last, begun = None, file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_OPCODES or file.tell() - begun > MOST_PICKLE:
            raise ValueError("its list of tensors is too long")
        if opcode.name in ("GLOBAL", "INST") and str(argument).split(" ")[-1] in _FORBIDDEN:
            raise ValueError(f"it wants to call {str(argument).replace(' ', '.')}")
        last = argument if argument is not None else last
    return last


def _check_tensors(content: object, limit: int) -> None:
    """ValueError where tensors claim more numbers than `limit` bytes can hold: a stride of 0 makes any size out of one number."""
    waiting, seen, total = [content], set(), 0
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
            if total > limit:
                raise ValueError("its tensors claim more numbers than it holds")
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
