"""When: a run from its first step, or from where it was interrupted, to its result. Called by the node, the demo and the command line alike."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..formats import concept_file, names
from ..host import denoiser as host_denoiser
from ..host import training as host
from ..host.fingerprint import fingerprint
from .advice import need_less
from .concept import Concept
from .distributed import Alone
from .measures import Step, Trained
from .optimizers import check_optimizer
from .resume import RunFolder
from .run import Run
from .settings import TrainSettings

log = logging.getLogger(__name__)

NEW, CONTINUE = RESUME = ("new run", "continue")


@dataclass(frozen=True)
class Keeping:
    """How a run is kept on the disk; nothing of it changes what is learned.

    root        the folder of all runs;  name: this one's
    every       steps between two states; 0 = nothing is kept (and an interrupted run is lost)
    resume      "new run", or "continue": go on from the newest state under the name
    tell        is given a sentence for the artist: where an interrupted run is kept, that a finished one was found
    """

    root: Path
    name: str = "concept"
    every: int = 100
    resume: str = NEW
    tell: Callable[[str], None] = log.warning

    def __post_init__(self):
        if self.resume not in RESUME:
            raise ValueError(f"resume is {self.resume!r}; expected 'new run' or 'continue'.")
        if self.every < 0:
            raise ValueError(f"save_every is {self.every}; expected 0 (never) or a number of steps.")


def train(
    model,
    clip,
    vae,
    concepts: list[Concept],
    settings: TrainSettings,
    on_step: Callable[[Step], None] | None = None,
    on_encode: Callable[[int, int], None] | None = None,
    keeping: Keeping | None = None,
    preview: Callable[[Run, int], None] | None = None,
    processes: Alone | None = None,
    on_restore: Callable[[list[Step]], None] | None = None,
) -> Trained:
    """Learn `concepts` on `model` and `clip` (the host's MODEL, CLIP, VAE), which stay as they are, bit for bit.

    The loss is L_recon + spl_weight * L_sp (ClassDiffusion, eq. 7) + prior_weight * L_prior + preservation_weight * L_dop. The result is a
    function of photos, models and settings alone: the same seed gives the same weights on the same processor, interrupted or not.

    on_step    sees each step;  on_encode(done, total): the photos' encoding before
    keeping    where states are kept and whether to go on from one; None keeps nothing
    preview    called after each step with (run, steps done), outside of autograd; draws when it wants to
    processes  of a distributed run; the first of them keeps the states
    on_restore sees the steps before, of a run that goes on

    Raises ValueError for what cannot be trained or continued, FloatingPointError when a loss or gradient is no number (before the
    optimizer step, with the last good state kept). The host's interrupt ends the run within one step, with the state kept. When memory
    runs out, the host's own exception comes with the settings that need less.
    """
    _check(concepts)
    check_optimizer(settings)
    host_denoiser.supported_family(model)
    processes = processes or Alone()
    with host.training_mode():
        run = Run(model, clip, vae, concepts, settings, processes)
        keeper = _Keeper(run, keeping if keeping and keeping.every else None)
        try:
            return _run(run, keeper, on_step, on_encode, preview, on_restore)
        except Exception as error:
            if host.is_out_of_memory(error):
                error.args = (f"{need_less(model, concepts, settings)} ({error})",)
            raise
        finally:
            keeper.end()
            del run, keeper
            host.memory_after_run()


def _run(run: Run, keeper: _Keeper, on_step, on_encode, preview, on_restore) -> Trained:
    done, state = keeper.begin()
    finished = state is not None and state["finished"]
    run.prepare(on_encode, done)
    if state is not None:
        run.restore(state)
        if on_restore:
            on_restore(run.history.steps)
    if finished:
        return run.result()
    keeper.ready()
    kept = done
    try:
        for step in range(done, run.settings.steps):
            host.interrupt_check()
            measured = run.step(step)
            done = step + 1
            if on_step:
                on_step(measured)
            if preview:
                preview(run, done)
            if keeper.due(done):
                keeper.keep(done)
                kept = done
    except BaseException as error:  # the host's interrupt is no Exception
        if done and keeper.rescue(done, kept) and isinstance(error, FloatingPointError):
            error.args = (f"{error}{keeper.said(done)}",)
        raise
    finally:
        run.optimizer.zero_grad(set_to_none=True)
    result = run.result()
    keeper.finish(done)
    return result


class _Keeper:
    """Keeps a run's states where `Keeping` says; with None, or in any process but the first, it does nothing."""

    def __init__(self, run: Run, keeping: Keeping | None):
        self.run, self.keeping = run, keeping
        self.folder: RunFolder | None = None
        self.identity: dict[str, str] = {}

    @property
    def place(self) -> Path | None:
        return self.folder.place if self.folder else None

    def begin(self) -> tuple[int, dict | None]:
        """(steps done, state or None). Before the photos are encoded: what cannot be continued is said at once."""
        if self.keeping is None:
            return 0, None
        self.identity = identity(self.run)
        if self.keeping.resume == CONTINUE:
            self.folder = RunFolder.newest(self.keeping.root, self.keeping.name)
            self.run.place = self.place
            done, state = self.folder.load(self.identity)
            if state["finished"]:
                self.keeping.tell(f"This training was finished before; its result is taken from {self.place}.")
            else:
                self.keeping.tell(f"Training goes on after step {done}, from {self.place}.")
            return done, state
        if self.run.processes.rank == 0:
            self.folder = RunFolder.new(self.keeping.root, self.keeping.name)
            self.run.place = self.place
        return 0, None

    def ready(self) -> None:
        """Before the first step: is there room for what will be kept?"""
        if self.folder and self.run.processes.rank == 0:
            self.folder.probe(self.run.state_size())

    def due(self, done: int) -> bool:
        return self.keeping is not None and done % self.keeping.every == 0 and done < self.run.settings.steps

    def keep(self, done: int) -> None:
        if self.folder and self.run.processes.rank == 0:
            self.folder.save(done, self.run.state(), self.identity)

    def finish(self, done: int) -> None:
        """The whole result stays on the disk, so that a later node that fails cannot lose it."""
        if self.folder and self.run.processes.rank == 0:
            self.folder.finish(done, self.run.state(finished=True), self.identity)

    def rescue(self, done: int, kept: int) -> bool:
        """After an interrupt or an error: keep what was learned, as a state and as ordinary files, and say where. False when nothing could be kept."""
        if not (self.folder and self.run.processes.rank == 0) or not self.run.whole:
            return False
        try:
            if done > kept:
                self.keep(done)
            result, place = self.run.result(), self.folder.place / "concept"
            name = f"{self.folder.place.name}-step{done}"
            saved = concept_file.save(result.lora, result.tokens, name, place / "loras", place / "embeddings", dtype=torch.float32, overwrite=True)
        except Exception:  # the first error is the one to tell
            log.exception("Kindred: what was learned until step %d could not be kept.", done)
            return False
        self.keeping.tell(f"The training stopped after step {done} of {self.run.settings.steps}. What it had learned is in {saved.lora}.{self.said(done)}")
        return True

    def end(self) -> None:
        """A run that kept nothing leaves no empty folder behind."""
        if self.folder and self.run.processes.rank == 0:
            with contextlib.suppress(OSError):
                self.place.rmdir()

    def said(self, done: int) -> str:
        return f" Its state after step {done} is kept in {self.place.name!r}; resume 'continue' goes on from there." if self.folder else ""


def identity(run: Run) -> dict[str, str]:
    """What makes two runs the same one: settings, photos, words, base model. Each entry is told by its name when it differs."""
    entries = run.settings.as_text()
    for concept in run.concepts:
        entries[f"the photos of {concept.token}"] = _digest([*concept.images, *(concept.masks or ())])
        entries[f"the prior images of {concept.token}"] = _digest(concept.prior_images)
        words = (concept.class_word, concept.prompts, concept.token_prompt, concept.class_prompt, concept.initializer, concept.repeats)
        entries[f"the words of {concept.token}"] = repr(words)
    models = {"model": run.model, "text encoder": (run.clip.patcher, run.clip.layer_idx), "VAE": run.vae.patcher}
    return {**entries, **{f"the {name}": fingerprint(part)[:12] for name, part in models.items()}}


def run_name(concepts: list[Concept]) -> str:
    """A run's name where nobody gave one: what it learns."""
    return names.file_name("-".join(f"{concept.class_word}_{concept.token}" for concept in concepts[:3]).replace(" ", "_"))


def _digest(pictures) -> str:
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr(tuple(picture.shape)).encode() + picture.contiguous().numpy().tobytes())
    return f"{len(pictures)} ({digest.hexdigest()[:12]})" if pictures else "none"


def _check(concepts: list[Concept]) -> None:
    if not concepts:
        raise ValueError("No concept is connected. Connect at least one Concept node.")
    tokens = [concept.token for concept in concepts]
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"Two concepts share a token ({', '.join(map(repr, tokens))}). Give each one of its own, for example '<v1>' and '<v2>'.")
