"""A run on the disk: its states, of which the last two are kept, and the rule that only the very same run goes on from them.

FOLDER/state-00000100.safetensors   everything a run is after that many steps: what is learned, optimizer, schedule, average, measures
FOLDER/previews/step-00000100.png   what the preview prompt gave
FOLDER/concept/                     what an interrupted run had learned, as ordinary files

The order of the data and all random numbers are functions of (seed, step), so the step alone stands for them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from ..formats import names, safefile

log = logging.getLogger(__name__)

KEPT = 2
_STATE = re.compile(r"state-(\d{8})\.safetensors")
_KIND = "kindred.training_state"


class RunFolder:
    """Where one run keeps its states."""

    def __init__(self, place: Path):
        self.place = place

    @classmethod
    def new(cls, root: Path, name: str) -> RunFolder:
        """A folder of its own below `root`: a name that is taken gets a number (`dog`, `dog_2`, ...)."""
        name = names.safe_name(name)
        number = 1
        while True:
            place = root / (name if number == 1 else f"{name}_{number}")
            try:
                place.mkdir(parents=True)
                return cls(place)
            except FileExistsError:
                number += 1
            except OSError as error:
                raise ValueError(
                    f"The folder {str(place)!r} for the training's states cannot be made: {error.strerror}. Make room, or set save_every to 0."
                ) from error

    @classmethod
    def newest(cls, root: Path, name: str) -> RunFolder:
        """The folder that was written last among `name`, `name_2`, ... ValueError when no state is there: never silently from zero."""
        name = names.safe_name(name)
        places = (
            [place for place in root.glob("*") if re.fullmatch(re.escape(name) + r"(_\d+)?", place.name) and not place.is_symlink()] if root.is_dir() else []
        )
        found = [(max(path.stat().st_mtime_ns for path in files), place) for place in places if (files := _states(place))]
        if not found:
            raise ValueError(f"There is no interrupted training {name!r} to continue in {str(root)!r}. Correct run_name, or set resume to 'new run'.")
        return cls(max(found)[1])

    def probe(self, size: int) -> None:
        """Find out before the first step whether states of about `size` bytes can be written here."""
        try:
            trial = safefile.write({"probe": torch.zeros(1)}, self.place / "probe.safetensors")
            trial.unlink()
        except OSError as error:
            raise ValueError(f"Nothing can be written into {str(self.place)!r}: {error.strerror}. Correct that, or set save_every to 0.") from error
        free, needed = shutil.disk_usage(self.place).free, (KEPT + 1) * size
        if free < needed:
            raise ValueError(
                f"The training's states need about {needed / 1e9:.1f} GB in {str(self.place)!r}, where {free / 1e9:.1f} GB are free. Make room, or set save_every to 0."
            )

    def save(self, step: int, state: dict, identity: dict[str, str]) -> Path:
        """Write the state after `step` steps; the one before it stays until the next."""
        tensors: dict[str, torch.Tensor] = {}
        packed = _pack(state, tensors, "state")
        path = self.place / f"state-{step:08d}.safetensors"
        metadata = {"format": "pt", "kind": _KIND, "step": str(step), "identity": json.dumps(identity), "structure": json.dumps(packed)}
        safefile.write(tensors, path, metadata)
        for old in _states(self.place)[:-KEPT]:
            with contextlib.suppress(OSError):
                old.unlink()
        return path

    def finish(self, step: int, state: dict, identity: dict[str, str]) -> Path:
        """Write the last state and take away the others, which nobody needs any more."""
        path = self.save(step, state, identity)
        for old in _states(self.place):
            if old != path:
                with contextlib.suppress(OSError):
                    old.unlink()
        return path

    def load(self, identity: dict[str, str]) -> tuple[int, dict]:
        """(steps done, state) of the newest state that can be read.

        ValueError that names each difference when the state is of another run, or says why none can be read.
        """
        problem = None
        for path in reversed(_states(self.place)):
            try:
                tensors, metadata = safefile.read(path)
                if metadata.get("kind") != _KIND:
                    raise ValueError(f"{str(path)!r} is no training state.")
                step, saved, structure = int(metadata["step"]), json.loads(metadata["identity"]), json.loads(metadata["structure"])
            except (ValueError, KeyError) as error:
                problem = problem or error
                log.warning("Kindred: the training state %s cannot be read (%s); the one before it is tried.", path.name, error)
                continue
            check_same(saved, identity)
            return step, _unpack(structure, tensors)
        raise ValueError(f"No training state in {str(self.place)!r} can be read: {problem}. Set resume to 'new run'.")


def check_same(saved: dict[str, str], now: dict[str, str]) -> None:
    """ValueError that names what differs between the run that was saved and the one that wants to go on."""
    differences = [f"{key} was {saved.get(key, 'not there')}, is {now.get(key, 'not there')}" for key in {**saved, **now} if saved.get(key) != now.get(key)]
    if differences:
        raise ValueError(f"This is not the training that was interrupted: {'; '.join(differences)}. Set it back, or set resume to 'new run'.")


def _states(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("state-*.safetensors") if _STATE.fullmatch(path.name))


def _pack(value: Any, tensors: dict[str, torch.Tensor], place: str) -> Any:
    """`value` as JSON, its tensors moved into `tensors`. Dictionaries keep the type of their keys; floats keep every bit."""
    if isinstance(value, torch.Tensor):
        tensors[place] = value.detach()
        return {"tensor": place}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(part, tensors, f"{place}.{key}")] for key, part in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(part, tensors, f"{place}.{index}") for index, part in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"A training state cannot hold {type(value).__name__} at {place}.")


def _unpack(packed: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(part, tensors) for key, part in content}
    return {"list": list, "tuple": tuple}[kind](_unpack(part, tensors) for part in content)
