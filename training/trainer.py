"""The training loop: a run from its first step, or from a saved state, to its result. The node, the demo and the shell call it."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..formats import names
from ..host import denoiser as host_denoiser
from ..host import families
from ..host import training as host_training
from ..host.types import Model
from . import best
from .advice import need_less
from .data.concept import Concept
from .distributed import SingleProcess
from .keeping import Keeper, Keeping
from .measures import Step, Trained, marks_of
from .optimizers import check_optimizer
from .run import Run
from .settings import TrainSettings
from .watch_settings import CONTINUE, NEW
from .watching import Seen, Watch

__all__ = ["CONTINUE", "NEW", "Keeping", "TrainSettings", "run_name", "train"]


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
    processes: SingleProcess | None = None,
    on_restore: Callable[[Run, int | None, list[int]], None] | None = None,
    watch: Watch | None = None,
) -> Trained:
    """Train `concepts` on `model` and `clip` (the host's MODEL, CLIP, VAE), which stay unchanged, bit for bit.

    The loss is L_recon + spl_weight * L_sp (ClassDiffusion, eq. 7) + prior_weight * L_prior + preservation_weight * L_dop. The result is a
    function of photos, models and settings alone: on one processor the same seed gives the same weights, whether the run was interrupted or not.

    on_step    called with each step;  on_encode(done, total): while the photos are encoded
    keeping    where states are saved and whether to resume from one; None saves nothing
    preview    called after each step with (run, steps done), outside of autograd
    processes  of a distributed run; the first one saves the states
    on_restore called with a resumed run, whose history has the earlier steps, its best step so far, and the measured steps whose files are kept
    watch      draws and measures on the way

    Raises ValueError for what cannot be trained or resumed, and FloatingPointError for a loss or gradient that is not finite (before the
    optimizer step; the last good state is saved). The host's interrupt ends the run within one step, with the state saved. Out of memory:
    the host's own exception, with the settings that need less in its message.
    """
    _check(concepts)
    check_optimizer(settings)
    host_denoiser.supported_family(model)
    settings = with_resolution(model, settings)
    processes = processes or SingleProcess()
    with host_training.training_mode():
        run = Run(model, clip, vae, concepts, settings, processes)
        keeper = Keeper(run, keeping, lambda state: watch is not None and watch.enough(marks_of(state)))
        try:
            return _run(run, keeper, on_step, on_encode, preview, on_restore, watch)
        except Exception as error:
            if host_training.is_out_of_memory(error):
                error.args = (f"{need_less(model, concepts, settings)} ({error})",)
            raise
        finally:
            keeper.end()
            del run, keeper
            host_training.free_memory_after_run()


def with_resolution(model: Model, settings: TrainSettings) -> TrainSettings:
    """`settings` with the resolution that the model was made for where they leave it to the model. ValueError if that is not known."""
    return settings if settings.resolution else settings.changed(resolution=families.side(model, host_denoiser.prediction(model)))


def _run(run: Run, keeper: Keeper, on_step, on_encode, preview, on_restore, watch: Watch | None) -> Trained:
    done, state = keeper.begin()
    ended = state is not None and keeper.ended(state)
    if state is not None and not ended and "optimizer" not in state:
        raise ValueError("An older version of Kindred finished this training and kept no optimizer, so it cannot go on. Set resume to 'new run'.")
    run.prepare(on_encode, run.settings.steps if ended else done, measures=watch is not None and watch.heldout_every > 0)
    if state is not None:
        _restore(run, state)
        if on_restore:
            on_restore(run, keeper.best(), keeper.kept_steps())
    if ended:
        return keeper.result()
    keeper.ready(measures=watch is not None)
    try:
        if watch is not None:
            watch.begin()
            if done:
                _look(run, keeper, watch, done)  # the earlier session may have been stopped before it had measured
        for step in range(done, run.settings.steps):
            host_training.interrupt_check()
            measured = run.step(step)
            done = step + 1
            if on_step:
                on_step(measured)
            run.check_skipped()
            if preview:
                keeper.draw(preview, done)
            if watch is not None:
                _look(run, keeper, watch, done)
                if run.processes.any(watch.enough(run.history.marks)) and done < run.settings.steps:
                    keeper.tell(
                        f"Stopped after step {done} of {run.settings.steps}: step {best.best(run.history.marks)} is still the best, {watch.stop_after} measured steps later. "
                        "To train on all the same, set stop_after to 0 and resume to 'continue'."
                    )
                    break
            if keeper.due(done):
                keeper.keep(done)
    except BaseException as error:  # the host's interrupt is not an Exception
        if done:
            keeper.rescue(done)
            if isinstance(error, FloatingPointError):
                error.args = (f"{error}{keeper.said()}",)
        raise
    finally:
        run.optimizer.zero_grad(set_to_none=True)
    result = keeper.result()
    keeper.finish(done)
    if skipped := run.history.skipped:
        keeper.tell(
            f"{skipped} of {done} steps were skipped, because their gradient overflowed in precision 'fp16'. A few are usual while the scale of the loss is found; for more, choose 'bf16' or 'fp32'."
        )
    return result


def _look(run: Run, keeper: Keeper, watch: Watch, done: int) -> None:
    """Watch the run after `done` steps, if that is due: draw, measure, keep the files, report."""
    if not watch.due(run, done):
        return
    began = time.monotonic()
    keeper.draw(watch.look, done)
    if not any(mark.step == done for mark in run.history.marks):
        return  # the disk refused something before anything was measured, which has been told
    keeper.keep_step(done)
    watch.spent(time.monotonic() - began)
    watch.report(Seen(run.history.marks[-1], keeper.best(), watch.share, keeper.kept_steps()))


def _restore(run: Run, state: dict) -> None:
    try:
        run.restore(state)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if host_training.is_out_of_memory(error):
            raise
        raise ValueError(
            f"The saved state does not fit this training, perhaps because another version of Kindred wrote it. Set resume to 'new run'. ({error!r})"
        ) from error


def run_name(concepts: list[Concept]) -> str:
    """The default name of a run, from its class words and tokens."""
    return names.file_name("-".join(f"{concept.class_word}_{concept.token}" for concept in concepts[:3]).replace(" ", "_"))


def _check(concepts: list[Concept]) -> None:
    if not concepts:
        raise ValueError("No concept is connected. Connect at least one Concept node.")
    tokens = [concept.token for concept in concepts]
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"Two concepts share a token ({', '.join(map(repr, tokens))}). Give each one of its own, for example '<v1>' and '<v2>'.")
