"""Metadata of a run's files: the keys of other trainers, and ours."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..formats.metadata import count_captions, training_metadata
from ..host import families
from ..host.types import Model
from .adapters.kinds import KINDS, LYCORIS
from .data.concept import Concept
from .measures import History
from .settings import TrainSettings


def describe(model: Model, prediction: str, concepts: list[Concept], settings: TrainSettings, precision: str, base_hash: str) -> dict[str, str]:
    """The metadata of a run's result; a function of the arguments alone."""
    network, tokens, text = settings.rates()
    architecture, base_version = families.architecture(model, prediction)
    kind = KINDS[settings.adapter] if settings.how.network == "adapter" else None
    prompts = [
        {"token": concept.token, "class_word": concept.class_word, "instance_prompt": concept.token_prompt, "class_prompt": concept.class_prompt}
        for concept in concepts
    ]
    return training_metadata(
        architecture=architecture,
        base_version=base_version,
        prediction=prediction,
        method=settings.method,
        steps=settings.steps,
        seed=settings.seed,
        resolution=settings.resolution,
        triggers=[concept.token for concept in concepts],
        prompts=prompts,
        tag_frequency=count_captions((concept.class_word, concept.prompts) for concept in concepts),
        spl_weight=settings.spl_weight,
        algorithm=settings.adapter if kind else "",
        reader=kind.reader if kind else LYCORIS,
        algo=kind.algo if kind else "full",
        rank=settings.rank if kind and kind.rank else None,
        alpha=(settings.alpha or float(settings.rank)) if kind and kind.alpha else None,
        learning_rate=network or tokens,
        unet_learning_rate=network or None,
        text_encoder_learning_rate=text if settings.train_text_encoder else tokens or None,
        batch_size=settings.batch_size,
        images=sum(len(concept.images) for concept in concepts),
        optimizer=settings.optimizer,
        schedule=settings.schedule,
        precision=precision,
        base_hash=base_hash,
        settings=settings.as_written(),
    )


def measured(history: History, changes: Sequence[str] = ()) -> dict[str, str]:
    """Metadata of how a run went so far: the step, changes of settings on the way, and the last known leak, held-out loss, likeness and prompt fidelity."""
    found = {"kindred.step": len(history.steps), "ss_steps": len(history.steps)} | ({"kindred.changes": ". ".join(changes)} if changes else {})
    leak = history.steps[-1].leak if history.steps else math.nan
    values = {"leak": None if math.isnan(leak) else leak}
    for key, name in (("heldout_loss", "heldout"), ("likeness", "likeness"), ("prompt_fidelity", "prompt")):
        values[key] = next((value for mark in reversed(history.marks) if (value := getattr(mark, name)) is not None), None)
    return {key: str(value) for key, value in found.items()} | {f"kindred.{key}": f"{value:.6g}" for key, value in values.items() if value is not None}
