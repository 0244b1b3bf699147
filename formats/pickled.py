"""Pickled files of other tools: loaded without running their code, and without unpacking more data than they contain."""

from __future__ import annotations

import pickletools
import struct
import zipfile
from pathlib import Path

import torch

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # at the start of torch's files before they were zip archives
_LEGACY_PICKLES = 5  # magic number, version, system, content, keys of the tensors' data
MAX_OPCODES = 2_000_000  # of a pickle; a checkpoint of 2,000 tensors has 70,000
MAX_PICKLE = 16 * 2**20  # bytes of the pickle itself, without the tensors' data
# Functions that torch's weights-only loading allows and no file of weights needs. They make objects of any size from a few bytes.
_FORBIDDEN = {"bytearray", "_rebuild_sparse_tensor", "_rebuild_meta_tensor_no_storage", "_rebuild_wrapper_subclass", "_rebuild_nested_tensor"}


def is_safetensors(path: Path) -> bool:
    """Is it a safetensors file, by its ending or, because some tools write safetensors as `.bin`, by its first bytes?

    ValueError with the path if the file cannot be read, perhaps because another process has renamed it in the meantime.
    """
    if path.suffix.lower() == ".safetensors":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ValueError(f"The file cannot be read ({error.strerror or error}): {str(path)!r}") from error
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < 100 * 2**20


def read(path: Path, limit: int, what: str) -> object:
    """The content of one of torch's pickled files, tensors on the CPU. `what` describes it in messages ("an embedding").

    ValueError with the path if loading it would run code, if it is damaged, or if the file or its content is larger than `limit` bytes.
    """
    if not path.is_file():
        raise ValueError(f"This is not an ordinary file: {str(path)!r}")
    if path.stat().st_size > limit:
        raise ValueError(f"The file has {path.stat().st_size / 2**20:.0f} MB; {what} is much smaller. It looks like a model: {str(path)!r}")
    try:
        _check_size(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(content, limit)
    except Exception as error:  # torch raises many types: pickle, zip, EOF, type errors
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(
            f"The file cannot be loaded without running code from it, or is damaged ({reason}). "
            f"If you trust its source, convert it to safetensors: {str(path)!r}"
        ) from error
    return content


def _check_size(path: Path) -> None:
    """ValueError for an archive that unpacks to more than its size (torch never compresses), or a pickle that makes large objects from few bytes."""
    with path.open("rb") as file:
        magic = file.read(4)  # torch distinguishes its two formats by it
        file.seek(0)
        if magic != b"PK\x03\x04":
            for index in range(_LEGACY_PICKLES):
                first = _check_pickle(file)
                if index == 0 and first != _LEGACY_MAGIC:
                    raise ValueError("torch did not write it")
            return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("it is compressed, and torch's files are not")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("it unpacks to more than its size")
            for entry in entries:
                if entry.filename.lower().endswith("data.pkl"):
                    if entry.file_size > MAX_PICKLE:
                        raise ValueError(f"its list of tensors has {entry.file_size / 2**20:.0f} MB")
                    with archive.open(entry) as pickle:
                        _check_pickle(pickle)


def _check_pickle(file) -> object:
    """Read one pickle without executing it. Returns its last number or text."""
    last, start = None, file.tell()
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_OPCODES or file.tell() - start > MAX_PICKLE:
            raise ValueError("its list of tensors is too long")
        if opcode.name in ("GLOBAL", "INST") and str(argument).split(" ")[-1] in _FORBIDDEN:
            raise ValueError(f"it would call {str(argument).replace(' ', '.')}")
        last = argument if argument is not None else last
    return last


def _check_tensors(content: object, limit: int) -> None:
    """ValueError if tensors claim more numbers than `limit` bytes can hold: with a stride of 0, one number makes any size."""
    waiting, seen, total = [content], set(), 0
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.element_size()
            if total > limit:
                raise ValueError("its tensors claim more numbers than it contains")
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
