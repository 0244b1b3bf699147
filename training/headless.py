"""Runs of recipe files in a terminal: progress as lines, Ctrl-C that keeps what was learned, one result for each file."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..formats import concept_file, picture_file
from ..host import checkpoint, paths
from . import distributed, recipe
from .advice import hints
from .measures import Step
from .preview import make_preview
from .trainer import CONTINUE, NEW, Keeping, train

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Somebody asked the run to end; its state is kept."""


def run(files: list[Path], resume: bool = False) -> int:
    """Train each file's concept; 0 when all were, 1 when one failed, 130 when they were stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    processes, failed, loaded = distributed.processes(), 0, {}
    first = processes.rank == 0
    with _asked_to_stop() as asked:
        for file in files:
            try:
                saved = _train(file, resume, processes, asked, loaded)
            except Stopped:
                return 130
            except (ValueError, OSError, FloatingPointError) as error:
                failed += 1
                print(f"kindred: {error}", file=sys.stderr, flush=True)
                continue
            if first:
                print(f"kindred: {file.name} is learned\n  LoRA   {saved.lora}", *(f"\n  token  {path}" for path in saved.embeddings), flush=True)
    return 1 if failed else 0


def _train(file: Path, resume: bool, processes, asked: list[int], loaded: dict):
    plan = recipe.read(file)
    key = (plan.checkpoint, plan.file.parent)
    if key not in loaded:  # the models stay as they were, so that the next run may have them
        loaded.clear()
        loaded[key] = checkpoint.load(*key)
    concepts, line = plan.concepts(), _Line(plan.settings.steps, processes.rank == 0)

    def on_step(step: Step) -> None:
        line.step(step)
        if processes.any(bool(asked)):
            raise Stopped

    for sentence in hints(loaded[key][1], concepts):
        line.tell(sentence)
    keeping = Keeping(paths.run_folder(), plan.name, plan.save_every, CONTINUE if resume else NEW, line.tell)
    preview = make_preview(line.preview, **plan.preview)
    with torch.inference_mode():
        result = train(*loaded[key], concepts, plan.settings, on_step, line.encoding, keeping, preview, processes)
    if processes.rank:
        return None
    return concept_file.save(result.lora, result.tokens, plan.name, paths.lora_folder(), paths.embedding_folder(), dtype=plan.dtype, overwrite=plan.overwrite)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Signals that have come: the run ends after its step, never in the middle of one. A second Ctrl-C is the system's."""
    asked: list[int] = []

    def note(number, _frame):
        asked.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Line:
    """What the first process prints: about one line a second, and every tenth of the run."""

    def __init__(self, steps: int, speaks: bool):
        self.steps, self.speaks = steps, speaks
        self._said = 0.0
        self._first: tuple[int, float] | None = None

    def encoding(self, done: int, total: int) -> None:
        if self.speaks and done == total:
            print(f"kindred: {total} pictures encoded", flush=True)

    def step(self, step: Step) -> None:
        now = time.monotonic()
        self._first = self._first or (step.step, now)
        tenth = step.step % max(1, self.steps // 10) == 0 or step.step == self.steps
        if not self.speaks or not (tenth or now - self._said > 10):
            return
        self._said = now
        done = step.step - self._first[0]
        left = f"   {(now - self._first[1]) / done * (self.steps - step.step):.0f} s left" if done else ""
        drift = "".join(f"   drift {token} {value:.3f}" for token, value in step.drift.items())
        print(f"  {step.step}/{self.steps}   loss {step.loss:.4f}   spl {step.spl:.4f}{drift}{left}", flush=True)

    def preview(self, step: int, picture: torch.Tensor, place: Path | None) -> None:
        if self.speaks and place is not None:
            folder = place / "previews"
            folder.mkdir(exist_ok=True)
            picture_file.write(picture.numpy(), folder / f"step-{step:08d}.png")
            print(f"  preview: {os.path.relpath(folder)}/step-{step:08d}.png", flush=True)

    def tell(self, sentence: str) -> None:
        if self.speaks:
            print(f"kindred: {sentence}", flush=True)
