"""Saving a run: states on the way, the trained files when it stops, the result.

A full disk never costs a result: what cannot be written is reported, and the training goes on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..formats import concept_file, kept_steps
from ..formats.manifest import digests
from ..host.fingerprint import content_hash
from . import best, going_on, resume
from .measures import Trained
from .resume import RunFolder
from .run import Run
from .watch_settings import CONTINUE, NEW, RESUME

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keeping:
    """How a run is saved. It changes nothing of what is learned.

    root        the folder of all runs;  name: this one's
    every       steps between two states; 0 = nothing is written (and an interrupted run is lost)
    resume      "new run", or "continue": go on from the newest state of the same training under the name
    tell        called with a sentence for the artist: where an interrupted run is kept, that a state could not be written
    steps       how many of the last measured steps keep their files, besides the best one; 0 = none
    """

    root: Path
    name: str = "concept"
    every: int = 100
    resume: str = NEW
    tell: Callable[[str], None] = log.warning
    steps: int = 5

    def __post_init__(self):
        if self.resume not in RESUME:
            raise ValueError(f"resume is {self.resume!r}; expected 'new run' or 'continue'.")
        if self.every < 0:
            raise ValueError(f"save_every is {self.every}; expected 0 (never) or a number of steps.")


class Keeper:
    """Saves a run's states as `Keeping` says. With None, and in any process but the first, it writes nothing."""

    def __init__(self, run: Run, keeping: Keeping | None, enough: Callable[[dict], bool] = lambda state: False):
        self.run, self.keeping, self.enough = run, keeping, enough  # enough: does the rule of the plateau end a run with this state?
        self.folder: RunFolder | None = None  # of the process that writes
        self.identity: dict[str, str] = {}
        self.kept = 0  # steps of the newest saved state
        self.failing = ""  # why the last state could not be written
        self.undrawn = False
        self.unkept = False

    @property
    def tell(self) -> Callable[[str], None]:
        return self.keeping.tell if self.keeping else log.warning

    @property
    def writes(self) -> bool:
        return self.folder is not None and self.keeping is not None and self.keeping.every > 0

    def begin(self) -> tuple[int, dict | None]:
        """(steps done, state or None). Called before the photos are encoded, so that a run that cannot be resumed fails at once."""
        keeping, first = self.keeping, self.run.processes.rank == 0
        if keeping is None or (not keeping.every and keeping.resume == NEW):
            return 0, None
        self.identity = identity(self.run)
        if first:
            resume.clear_leftovers(keeping.root)
        if keeping.resume == CONTINUE:
            return self._continue(keeping, first)
        if first:
            self._use(RunFolder.new(keeping.root, keeping.name))
        return 0, None

    def _continue(self, keeping: Keeping, first: bool) -> tuple[int, dict]:
        """The first process chooses the state; the others load the same one."""
        root, name, notes = keeping.root, keeping.name, []
        choice = [0, 0]
        if first:
            found = resume.find(root, name, self.identity)
            self._use(found.folder)
            going_on.check_left(found.identity, self.identity, found.step)
            if changed := going_on.change(found.identity, self.identity, found.step):
                found.state["changes"] = [*found.state.get("changes", []), changed]
                notes.append(f"With changes {changed}.")
            state, notes, choice = found.state, found.notes + notes, [found.step, resume.number(found.folder.path, name)]
        self.kept, count = self.run.processes.broadcast(choice)
        if first and (place := self.steps_folder):
            for step in kept_steps.files(place):
                if step > self.kept:  # the state is older than they are; they come again
                    kept_steps.remove(place, step)
        place = resume.numbered(root, name, count)
        if not first:
            state = resume.load(place, self.kept, self.identity)
        if self.ended(state):
            notes.append(f"This training was finished before; its result is taken from {place}.")
        else:
            notes.append(f"Training goes on after step {self.kept}, from {place}.")
        self.tell(" ".join(notes))
        return self.kept, state

    def ended(self, state: dict) -> bool:
        """Is the state a result that needs no further step? A run that was stopped early on a plateau goes on once the plateau no longer stops it."""
        return state["finished"] and (len(state["history"]) >= self.run.settings.steps or self.enough(state))

    def _use(self, folder: RunFolder) -> None:
        self.folder, self.run.folder = folder, folder.path

    def ready(self, measures: bool = False) -> None:
        """Check before the first step that the disk has room for the states, and for the files of measured steps if there will be any."""
        if self.folder is not None and self.writes:
            self.folder.probe(
                self.run.state_size(), self.run.result_size() * (self.keeping.steps + 1) if measures and self.steps_folder and self.keeping else 0
            )

    def due(self, done: int) -> bool:
        return self.keeping is not None and self.writes and done % self.keeping.every == 0 and done < self.run.settings.steps

    def draw(self, preview: Callable[[Run, int], None], done: int) -> None:
        """Call `preview`. If a picture cannot be written, report it once and go on training."""
        try:
            preview(self.run, done)
        except OSError as error:
            if not self.undrawn:
                self.tell(f"The preview after step {done} could not be written ({error.strerror or error}). Training goes on.")
            self.undrawn = True

    def keep(self, done: int) -> None:
        """Write a state. If it cannot be written, report it once; the next one is tried again."""
        before = self.failing
        if self._save(done):
            if before:
                self.tell(f"States are kept again, since step {done}.")
        elif not before:
            self.tell(f"The state after step {done} could not be kept ({self.failing}). Training goes on. Make room.{self.said()}")

    def finish(self, done: int) -> None:
        """Save the whole result, so that a later node that fails cannot lose it. If that fails, the result is returned all the same."""
        if self.keeping is None or not self.writes:
            return
        if self._save(done, finished=True):
            resume.clear_finished(self.keeping.root)
        else:
            self.tell(f"The training is done, but its result could not be kept for 'continue' ({self.failing}). Save it now, with Save Concept. Make room.")

    def rescue(self, done: int) -> None:
        """After an interrupt or an error: save the run and report where. The concept's files come first: they are small, and load anywhere."""
        folder = self.folder
        if folder is None or not self.writes:
            return
        if not self.run.consistent:
            self.tell(f"The training stopped in the middle of step {done + 1}, when the weights were half moved.{self.said()}")
            return
        said = f"The training stopped after step {done} of {self.run.settings.steps}."
        try:
            said += f" What it had learned is in {self._write_concept(folder.path / 'concept', done)}."
        except Exception as error:  # report the first error
            log.warning("Kindred: what was learned until step %d could not be written as a concept.", done, exc_info=True)
            said += f" What it had learned could not be written as files ({error})."
        if done > self.kept and not self._save(done):
            said += f" Its state could not be kept ({self.failing})."
        self.tell(f"{said}{self.said()}")

    def _write_concept(self, place: Path, done: int) -> Path:
        """Write what was learned after `done` steps as ordinary files below `place`. The LoRA's path."""
        assert self.folder is not None
        result, name = self.run.result(), f"{self.folder.path.name}-step{done}"
        return concept_file.save(result.lora, result.tokens, name, place / "loras", place / "embeddings", dtype=torch.float32, overwrite=True).lora

    # -- measured steps ----------------------------------------------------------------------------------------------

    @property
    def steps_folder(self) -> Path | None:
        """Where the files of the measured steps are; None if they are not kept."""
        return self.folder.path / "steps" if self.folder and self.writes and self.keeping and self.keeping.steps else None

    def best(self) -> int | None:
        """The best measured step so far: of those whose files are kept, or of all where none are."""
        place = self.steps_folder
        return best.best(self.run.history.marks, kept_steps.files(place).keys() if place else None)

    def kept_steps(self) -> list[int]:
        """The measured steps whose files are kept."""
        place = self.steps_folder
        return sorted(kept_steps.files(place)) if place else []

    def keep_step(self, done: int) -> None:
        """Keep the files of the step just measured, and of earlier ones only the last few and the best. If that fails, report it once and go on."""
        place, last = self.steps_folder, [mark.step for mark in best.candidates(self.run.history.marks)]
        if place is None or self.keeping is None or done not in last:
            return
        try:
            self._write_concept(place, done)
            stay = {*last[-self.keeping.steps :], self.best()}
            for step in kept_steps.files(place).keys() - stay:
                kept_steps.remove(place, step)
        except (OSError, ValueError) as error:
            if not self.unkept:
                self.tell(f"The files of step {done} could not be kept, so Save Concept cannot choose it. Training goes on. ({error})")
            self.unkept = True

    def result(self) -> Trained:
        """The run's result, which carries where the files of its measured steps are."""
        result, place = self.run.result(), self.steps_folder
        if place is not None and isinstance(result.lora, concept_file.LearnedLora):
            vectors = tuple(digests(token.vectors) for token in result.tokens)
            result.lora.kept = kept_steps.KeptSteps(place, len(result.history), self.best(), self._no_best(), vectors)
        return result

    def _no_best(self) -> str:
        """Why there is no best step, if there is none."""
        if not any(mark.heldout is not None or mark.likeness is not None or mark.prompt is not None for mark in self.run.history.marks):
            return "which is 'best', but the training measured nothing to tell by. Set heldout_every, or preview_every with a scoring model, and train again; or set which to 'last'."
        return "which is 'best', but the files of the measured steps are gone or could not be kept. Set which to 'last'."

    def _save(self, done: int, finished: bool = False) -> bool:
        folder = self.folder
        assert folder is not None  # callers ask `writes` first
        try:
            folder.save(done, self.identity, self.run.state(finished))
        except Exception as error:  # a failed copy must not lose the result in memory
            log.warning("Kindred: the state after step %d could not be kept.", done, exc_info=not isinstance(error, OSError))
            self.failing = str(error)
            return False
        self.failing, self.kept, self.run.folder = "", done, folder.path
        return True

    def said(self) -> str:
        """A sentence that says where `continue` resumes from."""
        return (
            f" Its state after step {self.kept} is kept in {self.folder.path.name!r}; resume 'continue' goes on from there."
            if self.kept and self.folder
            else ""
        )

    def end(self) -> None:
        if self.folder:
            self.folder.release()


def identity(run: Run) -> dict[str, str]:
    """What makes two runs the same: settings, photos, words, base model. A message names the entries that differ."""
    entries = run.settings.as_text()
    for concept in run.concepts:
        entries[f"the photos of {concept.token}"] = _digest([*concept.images, *(concept.masks or ())])
        entries[f"the prior images of {concept.token}"] = _digest(concept.prior_images)
        words = (concept.class_word, concept.prompts, concept.token_prompt, concept.class_prompt, concept.initializer, concept.repeats)
        entries[f"the words of {concept.token}"] = repr(words)
    models = {"model": run.model, "text encoder": (run.clip.patcher, run.clip.layer_idx), "VAE": run.vae.patcher}
    return {**entries, **{f"the {name}": content_hash(part)[:12] for name, part in models.items()}}


def _digest(pictures) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr(tuple(picture.shape)).encode() + picture.contiguous().numpy().tobytes())
    return f"{len(pictures)} ({digest.hexdigest()[:12]})" if pictures else "none"
