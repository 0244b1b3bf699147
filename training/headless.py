"""Training from recipe files in a terminal: progress lines, Ctrl-C that keeps the state, one result for each file."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..formats import concept_file, kept_steps, names, picture_file
from ..host import checkpoint, paths
from ..host.training import is_out_of_memory
from . import distributed, recipe
from .advice import hints, idle
from .measures import Step
from .scoring import Drawn
from .trainer import CONTINUE, NEW, Keeping, train
from .watching import Seen, make_watch

log = logging.getLogger(__name__)


class Stopped(BaseException):
    """The user asked to stop; the state is kept. Not an Exception, because it ends all files and not one."""


def run(files: list[Path], resume: bool = False) -> int:
    """Train each file's concept. Returns 0 if all succeeded, 1 if one failed, 130 if the user stopped them.

    An error ends its own file with a sentence and frees its memory before the next file.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    processes, failed, loaded = distributed.processes(), [], {}
    first = processes.rank == 0
    with _asked_to_stop() as asked:
        for file in files:
            problem, alike, saved = None, True, None
            try:
                saved = _train(file, resume, processes, asked, loaded)
            except Exception as error:
                problem, alike = _sentence(file, error), isinstance(error, ValueError)
            except SystemExit:
                raise
            except BaseException as error:  # Stopped, Ctrl-C, and the host's interrupt, which is not an Exception either
                if first:
                    print(f"kindred: stopped in {file.name}{f': {error}' if str(error) else '.'}", file=sys.stderr, flush=True)
                return 130
            if problem is None:
                if saved is not None:  # the first process saves
                    _report(file, saved)
                continue
            failed.append(file.name)
            print(f"kindred: {problem}", file=sys.stderr, flush=True)
            if not alike:  # here the error's traceback, which holds the run's objects, is gone
                loaded.clear()
                checkpoint.unload()
                if processes.world > 1:
                    print("kindred: the other processes cannot go on without this one, so the run ends here.", file=sys.stderr, flush=True)
                    return 1
    if failed and first and len(files) > 1:
        print(f"kindred: {len(failed)} of {len(files)} files failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _train(file: Path, resume: bool, processes, asked: list[int], loaded: dict):
    plan = recipe.read(file)
    names.safe_name(plan.name)  # now, not after the training
    key = (plan.checkpoint, plan.file.parent)
    if key not in loaded:  # training does not change the models, so the next run can use them
        loaded.clear()
        loaded[key] = _load(*key)
    concepts, line = plan.concepts(), _Line(plan.settings.steps, processes.rank == 0)

    def on_step(step: Step) -> None:
        line.step(step)
        if processes.any(bool(asked)):
            raise Stopped

    for sentence in (*idle(plan.settings), *hints(loaded[key][1], concepts)):
        line.tell(sentence)
    keeping = Keeping(paths.run_folder(), plan.name, plan.save_every, CONTINUE if resume else NEW, line.tell, plan.keep_steps)
    watch = make_watch(plan.watch, line.preview, line.mark, line.tell)
    with torch.inference_mode():
        model, clip, vae = loaded[key]
        result = train(model, clip, vae, concepts, plan.settings, on_step, line.encoding, keeping, processes=processes, watch=watch)
    if processes.rank:
        return None
    try:
        lora, tokens, step = kept_steps.choose(plan.which, result.lora, result.tokens)
        if step is not None:
            line.tell(f"Saved is the result after step {step}.")
        return concept_file.save(
            lora,
            tokens,
            plan.name,
            paths.lora_folder(),
            paths.embedding_folder(),
            dtype=plan.dtype,
            overwrite=plan.overwrite,
            lora_folders=paths.all_lora_folders(),
            embedding_folders=paths.all_embedding_folders(),
        )
    except (OSError, ValueError) as error:
        if plan.save_every:
            error.args = (f"{error} The finished training is kept in {str(paths.run_folder())!r}: --resume saves it without training again.",)
        raise


def _load(name: str, beside: Path):
    try:
        return checkpoint.load_checkpoint(name, beside)
    except ValueError:
        raise
    except Exception as error:  # the host's loader raises whatever the damage leads to
        if is_out_of_memory(error):
            raise
        raise ValueError(f"The checkpoint {name!r} cannot be loaded ({_first_line(error)}). Copy or download the file again.") from error


def _sentence(file: Path, error: Exception) -> str:
    """The error as a sentence. An unexpected one is given with its type, file and line."""
    if isinstance(error, (ValueError, OSError, FloatingPointError)) or is_out_of_memory(error):
        text = str(error) or type(error).__name__
        return text if text.startswith(file.name) else f"{file.name}: {text}"
    at = traceback.extract_tb(error.__traceback__)[-1]
    return f"{file.name}: an unexpected error, {type(error).__name__}: {_first_line(error)} ({Path(at.filename).name}, line {at.lineno})"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:300] or type(error).__name__


def _report(file: Path, saved: concept_file.SavedConcept) -> None:
    print(
        f"kindred: {file.name} is trained and saved as {saved.name!r}\n  LoRA   {saved.lora}", *(f"\n  token  {path}" for path in saved.embeddings), flush=True
    )
    if saved.note:
        print(f"kindred: {saved.note}", flush=True)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """Signals received so far. The run ends after its step, never in the middle of one; a second Ctrl-C ends the process."""
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
    """Progress lines of the first process: every ten seconds, and every tenth of the run."""

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

    def preview(self, step: int, drawn: list[Drawn], place: Path | None) -> None:
        if self.speaks and place is not None:
            folder = place / "previews"
            folder.mkdir(exist_ok=True)
            for number, one in enumerate(drawn, 1):
                name = f"step-{step:08d}{f'-{number}' if number > 1 else ''}.png"
                picture_file.write(one.picture.numpy(), folder / name)
                print(f"  preview: {os.path.relpath(folder)}/{name}", flush=True)

    def mark(self, seen: Seen) -> None:
        measured = (("held-out loss", seen.mark.heldout), ("likeness", seen.mark.likeness), ("prompt", seen.mark.prompt))
        if self.speaks and (said := "   ".join(f"{name} {value:.4f}" for name, value in measured if value is not None)):
            best = f"   best so far: step {seen.best}" if seen.best is not None else ""
            print(f"  after step {seen.mark.step}: {said}{best}   ({seen.share:.0%} of the time)", flush=True)

    def tell(self, sentence: str) -> None:
        if self.speaks:
            print(f"kindred: {sentence}", flush=True)
