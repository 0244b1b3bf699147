"""Advice in sentences: likely mistakes before a run, and settings that need less memory after an out-of-memory error."""

from __future__ import annotations

from ..host import text
from ..host.denoiser import latent_scale, training_memory
from ..host.types import Clip, Model
from .adapters.kinds import KINDS
from .data.concept import Concept
from .declare import declared
from .methods import METHODS
from .settings import TrainSettings


def step_shape(model: Model, concepts: list[Concept], settings: TrainSettings) -> tuple[int, int, int, int]:
    """[n, channels, h, w] of the latents of one batch, prior images included, without the frame dimension of video models."""
    rows = settings.batch_size * (2 if any(concept.prior_images for concept in concepts) else 1)
    side = settings.resolution // latent_scale(model)
    return rows, 4, side, side


def hints(clip: Clip, concepts: list[Concept]) -> list[str]:
    """Likely mistakes in the words of `concepts`: a misspelled class word, a caption that names another class."""
    class_words = {concept.token: concept.class_word for concept in concepts}
    said = [sentence for concept in concepts for sentence in text.spelling_hints(clip, concept.class_word)]
    prompts = dict.fromkeys(prompt for concept in concepts for prompt in (*concept.prompts, concept.token_prompt))
    return list(dict.fromkeys(said + [sentence for prompt in prompts for sentence in text.wrong_classes(prompt, class_words)]))


def idle(settings: TrainSettings) -> list[str]:
    """A sentence for each setting that differs from its default and that the method does not use."""
    own = {group for method in METHODS.values() for group in method.groups} - set(settings.how.groups)
    changed = [one for one in declared(TrainSettings) if one.group in own and getattr(settings, one.name) != one.default]
    return [f"{one.name} is {getattr(settings, one.name)!r}, but the method {settings.method!r} does not use it." for one in changed]


def need_less(model: Model, concepts: list[Concept], settings: TrainSettings) -> str:
    """The out-of-memory message: changes that need less memory, the mildest first, each with what a step then needs on top of the weights."""

    def gigabytes(changed: TrainSettings) -> str:
        return f"about {training_memory(model, step_shape(model, concepts, changed), changed.gradient_checkpointing) / 2**30:.1f} GB"

    changes: list[tuple[str, TrainSettings]] = []
    now = settings

    def offer(words: str, **change) -> None:
        nonlocal now
        now = now.changed(**change)
        changes.append((words, now))

    if not now.gradient_checkpointing:
        offer("turn on gradient_checkpointing (about a third slower, the same result)", gradient_checkpointing=True)
    if now.batch_size > 1:
        count = now.batch_size * now.accumulation
        offer(f"set batch_size to 1 and accumulation to {count}", batch_size=1, accumulation=count)
    if now.resolution > 512:
        side = max(512, now.resolution * 3 // 4 // 64 * 64)
        offer(f"lower resolution to {side}", resolution=side)
    steps = [f"{words}: {gigabytes(after)}" for words, after in changes]
    if now.precision == "fp32":
        steps.append("set precision to 'bf16': half of that")
    if now.how.less_memory:
        steps.append(now.how.less_memory)
    if now.how.network == "adapter" and KINDS[now.adapter].rank and now.rank > 8:
        steps.append("lower rank to 8")
    return f"Out of memory: a training step needs {gigabytes(settings)} on top of the weights. Try these in order: {'; '.join(steps or ['lower resolution'])}. The node Training Options has what Train Concept lacks."
