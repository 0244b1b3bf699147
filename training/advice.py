"""Sentences for the artist: what looks like a slip before a run, and which settings need less memory, by about how much."""

from __future__ import annotations

from ..host import text
from ..host.denoiser import latent_scale, training_memory
from .adapters.kinds import KINDS
from .data.concept import Concept
from .settings import TrainSettings


def step_shape(model, concepts: list[Concept], settings: TrainSettings) -> tuple[int, int, int, int]:
    """[n, channels, h, w] of one batch's latents, prior images' rows included. The one frame of a video model's pictures is left out."""
    rows = settings.batch_size * (2 if any(concept.prior_images for concept in concepts) else 1)
    side = settings.resolution // latent_scale(model)
    return rows, 4, side, side


def hints(clip, concepts: list[Concept]) -> list[str]:
    """What looks like a slip in the words of `concepts`: a misspelt class word, a caption that calls the subject by another kind."""
    class_words = {concept.token: concept.class_word for concept in concepts}
    said = [sentence for concept in concepts for sentence in text.spelling_hints(clip, concept.class_word)]
    prompts = dict.fromkeys(prompt for concept in concepts for prompt in (*concept.prompts, concept.token_prompt))
    return list(dict.fromkeys(said + [sentence for prompt in prompts for sentence in text.wrong_kinds(prompt, class_words)]))


def need_less(model, concepts: list[Concept], settings: TrainSettings) -> str:
    """A sentence with the changes that need less memory, the mildest first, each with what a step then needs beside the weights."""

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
    return (
        f"The memory did not suffice for this training, whose steps need {gigabytes(settings)} beside the weights. "
        f"What needs less, one after the other: {'; '.join(steps or ['lower resolution'])}."
    )
