"""The training loop: a run from its first step, or from a saved state, to its result. The node, the demo and the shell call it."""

from __future__ import annotations

from collections.abc import Callable

from ..formats import names
from ..host import denoiser as host_denoiser
from ..host import families
from ..host import training as host_training
from ..host.types import Model
from .advice import need_less
from .data.concept import Concept
from .distributed import SingleProcess
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
    processes: SingleProcess | None = None,
    on_restore: Callable[[list[Step]], None] | None = None,
) -> Trained:
    """Train `concepts` on `model` and `clip` (the host's MODEL, CLIP, VAE), which stay unchanged, bit for bit.

    The loss is L_recon + spl_weight * L_sp (ClassDiffusion, eq. 7) + prior_weight * L_prior + preservation_weight * L_dop. The result is a
    function of photos, models and settings alone: on one processor the same seed gives the same weights, whether the run was interrupted or not.

    on_step    called with each step;  on_encode(done, total): while the photos are encoded
    keeping    where states are saved and whether to resume from one; None saves nothing
    preview    called after each step with (run, steps done), outside of autograd; decides itself when to draw
    processes  of a distributed run; the first one saves the states
    on_restore called with the earlier steps of a resumed run

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
        keeper = Keeper(run, keeping)
        try:
            return _run(run, keeper, on_step, on_encode, preview, on_restore)
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
            host_training.interrupt_check()
            measured = run.step(step)
            done = step + 1
            if on_step:
                on_step(measured)
            run.check_skipped()
            if preview:
                keeper.draw(preview, done)
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
