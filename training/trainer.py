"""When: a run from its first step, or from where it was interrupted, to its result. Called by the node, the demo and the command line alike."""

from __future__ import annotations

from collections.abc import Callable

from ..formats import names
from ..host import denoiser as host_denoiser
from ..host import training as host
from .advice import need_less
from .data.concept import Concept
from .distributed import Alone
from .keeping import Keeper, Keeping
from .measures import Step, Trained
from .optimizers import check_optimizer
from .run import Run
from .settings import CONTINUE, NEW, TrainSettings

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
        keeper = Keeper(run, keeping)
        try:
            return _run(run, keeper, on_step, on_encode, preview, on_restore)
        except Exception as error:
            if host.is_out_of_memory(error):
                error.args = (f"{need_less(model, concepts, settings)} ({error})",)
            raise
        finally:
            keeper.end()
            del run, keeper
            host.free_memory_after_run()


def _run(run: Run, keeper: Keeper, on_step, on_encode, preview, on_restore) -> Trained:
    done, state = keeper.begin()
    finished = state is not None and state["finished"]
    run.prepare(on_encode, done)
    if state is not None:
        _restore(run, state)
        if on_restore:
            on_restore(run.history.steps)
    if finished:
        return run.result()
    keeper.ready()
    try:
        for step in range(done, run.settings.steps):
            host.interrupt_check()
            measured = run.step(step)
            done = step + 1
            if on_step:
                on_step(measured)
            run.check_skipped()
            if preview:
                keeper.draw(preview, done)
            if keeper.due(done):
                keeper.keep(done)
    except BaseException as error:  # the host's interrupt is no Exception
        if done:
            keeper.rescue(done)
            if isinstance(error, FloatingPointError):
                error.args = (f"{error}{keeper.said()}",)
        raise
    finally:
        run.optimizer.zero_grad(set_to_none=True)
    result = run.result()
    keeper.finish(done)
    if skipped := run.history.skipped:
        keeper.tell(
            f"{skipped} of {done} steps were skipped, because their gradient overflowed in precision 'fp16'. A few are usual while the scale of the loss is found; for more, choose 'bf16' or 'fp32'."
        )
    return result


def _restore(run: Run, state: dict) -> None:
    try:
        run.restore(state)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if host.is_out_of_memory(error):
            raise
        raise ValueError(
            f"The training's state does not fit what is trained ({error!r}), perhaps because another version of Kindred wrote it. Set resume to 'new run'."
        ) from error


def run_name(concepts: list[Concept]) -> str:
    """A run's name where nobody gave one: what it learns."""
    return names.file_name("-".join(f"{concept.class_word}_{concept.token}" for concept in concepts[:3]).replace(" ", "_"))


def _check(concepts: list[Concept]) -> None:
    if not concepts:
        raise ValueError("No concept is connected. Connect at least one Concept node.")
    tokens = [concept.token for concept in concepts]
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"Two concepts share a token ({', '.join(map(repr, tokens))}). Give each one of its own, for example '<v1>' and '<v2>'.")
