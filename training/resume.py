"""Runs on disk: their last two states, and the rule that only the same run resumes from them (`going_on` says what may change on the way).

ROOT/NAME/state-00000100.safetensors   the state after that many steps: trained parameters, optimizer, schedule, average, measurements
ROOT/NAME/previews/step-00000100.png   a preview
ROOT/NAME/concept/                     the trained files of an interrupted run
ROOT/NAME/steps/                       the trained files of measured steps (`formats.kept_steps`)
ROOT/NAME/lock                         locked while a process trains in this folder

The order of the data and all random numbers are functions of (seed, step), so a state needs the step alone.

An interrupted run keeps its states until it is finished or its folder is deleted. Of the finished runs only the last `FINISHED` keep
their state, from which they can go on, and their measured steps. Previews and concept files are never removed.
"""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..formats import exclusive, leftovers, locks, names, safefile, state_file, switch
from ..formats.state_file import StateHeader
from .going_on import clauses, differing, hindering

log = logging.getLogger(__name__)

KEPT = 2  # states of a run: the newest may be damaged
FINISHED = 3  # finished runs that keep their result
_STATE = re.compile(r"state-(\d{8,})\.safetensors")
_LOCK = "lock"


class RunFolder:
    """The folder of one run's states. It is locked, so that no other process trains in it or clears it.

    damaged  states that were left aside; they go when the next one is written
    """

    def __init__(self, path: Path, lock: locks.Lock | None = None):
        self.path, self.lock = path, lock
        self.damaged: list[Path] = []

    @classmethod
    def new(cls, root: Path, name: str) -> RunFolder:
        """A new folder below `root`. A taken name gets a number (`dog`, `dog_2`, ...)."""
        name = names.safe_name(name)
        count = 1
        while True:
            path = numbered(root, name, count)
            try:
                path.mkdir(parents=True)
                if lock := locks.Lock.take(path / _LOCK):
                    return cls(path, lock)
            except FileExistsError:
                pass
            except OSError as error:
                raise ValueError(
                    f"The folder for the training's states cannot be made: {error.strerror}. Make room, or set save_every to 0. The folder is {str(path)!r}."
                ) from error
            count += 1

    def probe(self, size: int, more: int = 0) -> None:
        """Check before the first step that states of about `size` bytes each, and `more` bytes of other files, can be written here."""
        try:
            safefile.write({"probe": torch.zeros(1)}, self.path / "probe.safetensors").unlink()
        except OSError as error:
            raise ValueError(f"Training states cannot be written: {error}. Correct that, or set save_every to 0.") from error
        free = shutil.disk_usage(self.path).free
        needed = (KEPT + 1) * size + more - sum(path.stat().st_size for path in _states(self.path))
        if free < needed:
            raise ValueError(
                f"The training's states and kept steps need about {needed / 1e9:.1f} GB on the disk, where {free / 1e9:.1f} GB are free. Make room, lower keep_steps, or set save_every to 0. The folder is {str(self.path)!r}."
            )

    def save(self, step: int, identity: dict[str, str], state: dict) -> None:
        """Write the state after `step` steps, and keep the one before. An OSError leaves the earlier states untouched."""
        self._hold()
        path = state_file.write(self.path / f"state-{step:08d}.safetensors", step, identity, state)
        states = [old for old in _states(self.path) if old not in self.damaged or old == path]
        useless = self.damaged + (states if state["finished"] else states[:-KEPT])
        self.damaged = []
        for old in useless:
            if old != path:
                with contextlib.suppress(OSError):
                    old.unlink()

    def _hold(self) -> None:
        """Make the folder again if it was deleted during the run, under another name if that one is taken by now."""
        if self.lock is None or self.lock.is_there():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        lock = locks.Lock.take(self.path / _LOCK)
        taken = self.new(self.path.parent, self.path.name) if lock is None else RunFolder(self.path, lock)
        self.lock.release()
        self.path, self.lock = taken.path, taken.lock

    def release(self) -> None:
        """Release the lock, and remove the folder if it is empty."""
        if self.lock:
            self.lock.release()
            self.lock = None
            with contextlib.suppress(OSError):
                self.path.rmdir()


@dataclass
class Found:
    """A run to resume: its folder (locked), steps done, state and identity, and sentences about states that could not be used."""

    folder: RunFolder
    step: int
    state: dict
    identity: dict[str, str]
    notes: list[str] = field(default_factory=list)


def find(root: Path, name: str, identity: dict[str, str]) -> Found:
    """The run `identity` among `name`, `name_2`, ...: the one with most steps, then the one with the exact name, then the newest. Runs that may go on
    as `identity` (`going_on`) come behind those that are it.

    A state that is damaged is left aside for the one before it. ValueError, never a start from zero, when there is none: with each
    difference to the nearest run, or with what is wrong with its states.
    """
    name = names.safe_name(name)
    runs = [_look(path, name) for path in _folders(root, name)]
    runs = sorted((run for run in runs if run.states), key=lambda run: run.order(identity), reverse=True)
    if not runs:
        raise ValueError(f"There is no interrupted training {name!r} to continue. Correct run_name, or set resume to 'new run'. Looked in {str(root)!r}.")
    notes: list[str] = []
    busy = []
    for run in runs:
        if not run.may_be(identity):
            continue
        try:
            lock = locks.Lock.take(run.path / _LOCK)
        except OSError as error:
            raise ValueError(f"The training's folder cannot be written to: {error.strerror}. Correct that. The folder is {str(run.path)!r}.") from error
        if lock is None:
            busy.append(run.path.name)
            continue
        if found := _newest_good(RunFolder(run.path, lock), identity, notes):
            return found
        lock.release()
    if busy:
        raise ValueError(f"The training {busy[0]!r} is running in another process. Let it end, or set resume to 'new run'.")
    notes += [problem for run in runs if not run.may_be(identity) for problem in run.problems]
    reasons = "".join(f" {note}" for note in notes)
    near = min((run for run in runs if run.heads), key=lambda run: run.distance(identity), default=None)
    if near is None or near.distance(identity)[0] == 0:
        raise ValueError(f"No state of the training {name!r} can be used. Set resume to 'new run'.{reasons}")
    raise ValueError(
        f"No interrupted training {name!r} has these photos and settings. In the nearest one, {near.path.name!r} after step {near.heads[-1].step}, "
        f"{'; '.join(near.differences(identity))}. Set it back, or set resume to 'new run'. "
        f"Steps (with a constant schedule), learning rates and the weights of the losses may change.{reasons}"
    )


def load(folder: Path, step: int, identity: dict[str, str]) -> dict:
    """The state after exactly `step` steps, which another process of the same run has chosen. Raises ValueError as `find` does."""
    head, state = state_file.read(folder / f"state-{step:08d}.safetensors")
    if hindering(head.identity, identity):
        raise ValueError(f"The processes of this training differ: {'; '.join(differences(head.identity, identity))}.")
    return state


def clear_leftovers(root: Path) -> None:
    """Remove half-written files of killed processes from all runs, and complete the concept files that they were saving."""
    leftovers.clear_below(root)
    for path in _folders(root):
        for place in (path / "concept", path / "steps"):
            loras, embeddings = concept = place / "loras", place / "embeddings"
            with contextlib.suppress(OSError), exclusive.locked(*concept, wait=0) as alone:
                if alone:
                    switch.settle(loras, embeddings)
        with contextlib.suppress(OSError):  # killed before its first state
            if [file.name for file in path.iterdir()] == [_LOCK] and (lock := locks.Lock.take(path / _LOCK, create=False)):
                RunFolder(path, lock).release()


def clear_finished(root: Path) -> None:
    """Remove the states of all but the last `FINISHED` finished runs, except in folders that a process uses."""
    finished = []
    for path in _folders(root):
        run = _look(path)
        if run.heads and run.heads[-1].finished:
            finished.append(run)
    for run in sorted(finished, key=lambda run: run.written, reverse=True)[FINISHED:]:
        with contextlib.suppress(OSError):
            if lock := locks.Lock.take(run.path / _LOCK):
                for state in run.states:
                    state.unlink(missing_ok=True)
                shutil.rmtree(run.path / "steps", ignore_errors=True)
                RunFolder(run.path, lock).release()


def differences(saved: dict[str, str], now: dict[str, str]) -> list[str]:
    """The differences between the saved run and this one that keep it from going on, one clause each."""
    return clauses(saved, now, hindering(saved, now))


def numbered(root: Path, name: str, count: int) -> Path:
    """The folder of `name`, `name_2`, ... below `root`."""
    return root / (name if count == 1 else f"{name}_{count}")


def number(path: Path, name: str) -> int | None:
    """The number of the folder among `name`, `name_2`, ...; None if it is not one of them."""
    match = re.fullmatch(re.escape(name) + r"(?:_([2-9]|[1-9]\d+))?", unicodedata.normalize("NFC", path.name))  # some disks spell an é in two
    return int(match[1] or 1) if match else None


@dataclass
class _Run:
    """A folder with its states (oldest first), their headers, and the problems of those without one. number: as in `dog_2`; 1 for the exact name."""

    path: Path
    number: int
    states: list[Path]
    heads: list[StateHeader]
    problems: list[str]
    written: float

    def may_be(self, identity: dict[str, str]) -> bool:
        return any(not hindering(head.identity, identity) for head in self.heads)

    def order(self, identity: dict[str, str]) -> tuple:
        steps = [(head.identity == identity, head.finished, head.step) for head in self.heads if not hindering(head.identity, identity)]
        return max(steps, default=(False, False, 0)), self.number == 1, self.written

    def differences(self, identity: dict[str, str]) -> list[str]:
        return differences(self.heads[-1].identity, identity)

    def distance(self, identity: dict[str, str]) -> tuple[int, int]:
        """How many entries keep the run from going on, and how many differ."""
        return len(hindering(self.heads[-1].identity, identity)), len(differing(self.heads[-1].identity, identity))


def _look(path: Path, name: str = "") -> _Run:
    run = _Run(path, number(path, name) or 1, _states(path), [], [], 0.0)
    for state in run.states:
        with contextlib.suppress(OSError):
            run.written = max(run.written, state.stat().st_mtime)
        try:
            run.heads.append(state_file.header(state))
        except ValueError as error:
            run.problems.append(_aside(state, error))
    return run


def _aside(state: Path, error: ValueError) -> str:
    return f"The state {state.name!r} of {state.parent.name!r} was left aside: {error}"


def _newest_good(folder: RunFolder, identity: dict[str, str], notes: list[str]) -> Found | None:
    for path in reversed(_states(folder.path)):
        try:
            head, state = state_file.read(path)
            if head.step != _step(path):
                raise ValueError(f"The file says that it is the state after step {head.step}.")
        except ValueError as error:
            log.warning("Kindred: the training state %s cannot be used (%s); the one before it is tried.", path, error)
            notes.append(_aside(path, error))
            folder.damaged.append(path)
            continue
        if not hindering(head.identity, identity):
            return Found(folder, head.step, state, head.identity, notes)
    return None


def _folders(root: Path, name: str = "") -> list[Path]:
    """The run folders below `root`, without links; with `name` only `name`, `name_2`, ..."""
    try:
        found = [path for path in root.iterdir() if not path.is_symlink() and path.is_dir()]
    except OSError:
        return []
    return sorted(path for path in found if not name or number(path, name))


def _states(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((path for path in folder.glob("state-*.safetensors") if _STATE.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    found = _STATE.fullmatch(path.name)
    return int(found[1]) if found else 0
