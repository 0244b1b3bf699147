"""Training states as safetensors files with a checksum, so that a damaged state is never used.

The metadata holds all but the tensors: `structure` is the state as JSON with the tensors' names in their places, `checksum` is a SHA-256
over the other metadata and the CRC-32 of each tensor (a fifth of a second for 1 GB; SHA-256 of the tensors would take as long as writing).
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
_TYPE = "kindred.training_state"
_DEPTH = 32  # nested dictionaries and lists; our states need 7


@dataclass(frozen=True)
class StateHeader:
    """The header of a state, before its checksum is verified.

    step      steps done
    identity  settings and inputs; two runs with equal ones are the same run
    finished  the run is complete: the state holds its result, and no optimizer
    """

    step: int
    identity: dict[str, str]
    finished: bool


def write(path: Path, step: int, identity: dict[str, str], state: dict) -> Path:
    """Write `state`: tensors, numbers, strings and None in dictionaries, lists and tuples, and the bool state["finished"]. OSError from the disk."""
    tensors: dict[str, torch.Tensor] = {}
    structure = _pack_value(state, tensors, "state")
    metadata = {"format": "pt", "kind": _TYPE, "version": str(VERSION), "step": str(step), "finished": str(int(state["finished"]))}
    metadata |= {"identity": json.dumps(identity), "structure": json.dumps(structure, allow_nan=False)}
    return safefile.write(tensors, path, {**metadata, "checksum": _checksum(tensors, metadata)})


def header(path: Path) -> StateHeader:
    """The header of a state, without its tensors. ValueError if the file is not a readable state."""
    return _parse_header(safefile.metadata(path))


def read(path: Path) -> tuple[StateHeader, dict]:
    """(header, state), bit for bit as written. ValueError with the reason if the file is damaged or of another version."""
    tensors, metadata = safefile.read(path)
    tensors = {name: value.clone() for name, value in tensors.items()}  # the library maps the file, which may be replaced while they are in use
    parsed = _parse_header(metadata)
    if metadata.pop("checksum", None) != _checksum(tensors, metadata):
        raise ValueError("The file is damaged: its checksum does not match its content.")
    try:
        state = _unpack_value(json.loads(metadata["structure"]), tensors)
    except (KeyError, RecursionError) as error:
        raise ValueError(f"The file is damaged ({error!r}).") from error
    if not isinstance(state, dict) or state.get("finished") is not parsed.finished:
        raise ValueError("The file is damaged: it holds no state.")
    return parsed, state


def _parse_header(metadata: dict[str, str]) -> StateHeader:
    if metadata.get("kind") != _TYPE:
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
        raise ValueError("The file is damaged: its header has an invalid step or identity.")
    return StateHeader(step, identity, finished)


def _checksum(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> str:
    """The checksum, hexadecimal. Large tensors are read in parallel: zlib releases Python's lock."""
    names = sorted(tensors)
    if sum(tensor.nbytes for tensor in tensors.values()) < 2**24:
        sums = [_crc(tensors[name]) for name in names]
    else:
        with ThreadPoolExecutor(4) as pool:
            sums = list(pool.map(lambda name: _crc(tensors[name]), names))
    rows = [[name, str(tensors[name].dtype), list(tensors[name].shape), number] for name, number in zip(names, sums, strict=True)]
    return hashlib.sha256(json.dumps([sorted(metadata.items()), rows]).encode()).hexdigest()


def _crc(tensor: torch.Tensor) -> int:
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0


def _pack_value(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """`value` as JSON, its tensors moved into `tensors` under names that begin with `name`. Keys keep their type, floats keep every bit."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value.detach().cpu()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack_value(entry, tensors, f"{name}.{key}")] for key, entry in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack_value(entry, tensors, f"{name}.{index}") for index, entry in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}  # JSON has no such numbers
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"A training state cannot hold {type(value).__name__} at {name}.")


def _unpack_value(packed: Any, tensors: dict[str, torch.Tensor], depth: int = 0) -> Any:
    """The inverse of `_pack_value`. ValueError for any other structure: a checksum can be forged along with the content."""
    if not isinstance(packed, dict):
        if isinstance(packed, list):
            raise ValueError("The file is damaged: a list stands where a value was expected.")
        return packed
    if len(packed) != 1 or depth > _DEPTH:
        raise ValueError("The file is damaged: its structure is not that of a state.")
    ((name, content),) = packed.items()
    if name in ("tensor", "float") and isinstance(content, str):
        return tensors[content] if name == "tensor" else float(content)
    if name == "dict" and isinstance(content, list) and all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int)) for pair in content):
        return {key: _unpack_value(value, tensors, depth + 1) for key, value in content}
    if name in ("list", "tuple") and isinstance(content, list):
        return {"list": list, "tuple": tuple}[name](_unpack_value(value, tensors, depth + 1) for value in content)
    raise ValueError(f"The file is damaged: its structure holds {str(name)[:20]!r}.")
