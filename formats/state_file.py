"""A training's state as one file, checked whole when it is read: a damaged one is never taken for a good one.

The tensors are the file's; everything else is its metadata: `structure` holds the state as JSON with the tensors' names in their places,
`checksum` is a SHA-256 over all metadata and the CRC-32 of each tensor (a fifth of a second for 1 GB; SHA-256 would take as long as writing).
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import safefile

VERSION = 2
_KIND = "kindred.training_state"
_DEPTH = 32  # of dictionaries and lists in one another; our states need 7


@dataclass(frozen=True)
class Head:
    """What a state's header says, not yet checked.

    step      steps done
    identity  what makes two runs the same one
    finished  nothing is left to do: the state holds the result, and no optimizer
    """

    step: int
    identity: dict[str, str]
    finished: bool


def write(path: Path, step: int, identity: dict[str, str], state: dict) -> Path:
    """Write `state`: tensors, numbers, texts, None, in dictionaries, lists and tuples; with state["finished"], a bool. OSError from the disk."""
    tensors: dict[str, torch.Tensor] = {}
    structure = _pack(state, tensors, "state")
    metadata = {"format": "pt", "kind": _KIND, "version": str(VERSION), "step": str(step), "finished": str(int(state["finished"]))}
    metadata |= {"identity": json.dumps(identity), "structure": json.dumps(structure, allow_nan=False)}
    return safefile.write(tensors, path, {**metadata, "checksum": _checksum(tensors, metadata)})


def head(path: Path) -> Head:
    """The header of a state, without its tensors. ValueError if the file is not a readable state."""
    return _head(safefile.metadata(path))


def read(path: Path) -> tuple[Head, dict]:
    """(header, state), each bit as it was written. ValueError with the reason when it is damaged or of another version."""
    tensors, metadata = safefile.read(path)
    tensors = {name: value.clone() for name, value in tensors.items()}  # the library's lie in the file, which may be replaced while they are in use
    about = _head(metadata)
    if metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise ValueError("The file is damaged: its checksum is not the one of its content.")
    try:
        state = _unpack(json.loads(metadata["structure"]), tensors)
    except (KeyError, RecursionError) as error:
        raise ValueError(f"The file is damaged ({error!r}).") from error
    if not isinstance(state, dict) or state.get("finished") is not about.finished:
        raise ValueError("The file is damaged: it holds no state.")
    return about, state


def _head(metadata: dict[str, str]) -> Head:
    if metadata.get("kind") != _KIND:
        raise ValueError("The file is not a training state.")
    version = metadata.get("version", "1")
    if version != str(VERSION):
        raise ValueError(f"The state has version {version[:20]!r}, and this version of Kindred reads {str(VERSION)!r}.")
    try:
        identity = json.loads(metadata["identity"])
        step, finished = int(metadata["step"]), {"0": False, "1": True}[metadata["finished"]]
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(f"The file is damaged ({error!r}).") from error
    if step < 0 or not isinstance(identity, dict) or not all(isinstance(value, str) for value in identity.values()):
        raise ValueError("The file is damaged: its header says nothing that fits.")
    return Head(step, identity, finished)


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """Hexadecimal. Large tensors are gone through side by side: zlib leaves Python's lock."""
    names = sorted(tensors)
    if sum(tensor.nbytes for tensor in tensors.values()) < 2**24:
        sums = [_crc(tensors[name]) for name in names]
    else:
        with ThreadPoolExecutor(4) as pool:
            sums = list(pool.map(lambda name: _crc(tensors[name]), names))
    about = [[name, str(tensors[name].dtype), list(tensors[name].shape), number] for name, number in zip(names, sums, strict=True)]
    return hashlib.sha256(json.dumps([sorted(metadata.items()), about]).encode()).hexdigest()


def _crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0


def _pack(value: Any, tensors: dict[str, torch.Tensor], place: str) -> Any:
    """`value` as JSON, its tensors moved into `tensors`. Dictionaries keep the type of their keys; floats keep every bit."""
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach().cpu()
        return {"tensor": place}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(part, tensors, f"{place}.{key}")] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(part, tensors, f"{place}.{index}") for index, part in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON knows no such numbers
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"A training state cannot hold {type(value).__name__} at {place}.")


def _unpack(packed: Any, tensors: dict[str, torch.Tensor], depth: int = 0) -> Any:
    """What `_pack` packed. ValueError for anything else: a checksum can be forged with its content."""
    if not isinstance(packed, dict):
        if isinstance(packed, list):
            raise ValueError("The file is damaged: a list stands where a value was expected.")
        return packed
    if len(packed) != 1 or depth > _DEPTH:
        raise ValueError("The file is damaged: its structure is not the one of a state.")
    ((kind, content),) = packed.items()
    if kind in ("tensor", "float") and isinstance(content, str):
        return tensors[content] if kind == "tensor" else float(content)
    if kind == "dict" and isinstance(content, list) and all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int)) for pair in content):
        return {key: _unpack(part, tensors, depth + 1) for key, part in content}
    if kind in ("list", "tuple") and isinstance(content, list):
        return {"list": list, "tuple": tuple}[kind](_unpack(part, tensors, depth + 1) for part in content)
    raise ValueError(f"The file is damaged: its structure holds {str(kind)[:20]!r}.")
