"""What the demo compares: the ways to draw one prompt, each as a branch of the workflow that people drag onto the canvas, and their scores."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass

import workflow as workflows
from PIL import Image

PLAIN, KEPT = "plain", "spl"  # the two trainings: without and with the Semantic Preservation Loss


@dataclass(frozen=True)
class Way:
    """A column: a training, and the picture of the workflow that it takes. `turned`: its prompt goes through Text Encode Concept as well."""

    title: str
    subtitle: str
    training: str
    picture: str
    turned: bool = False


ALL = Way("all together", "SPL, guidance and TEA", KEPT, "Personalization Guidance", True)
# The miniature world learns in a minute, so it learns twice; a real model learns once, with SPL.
SMALL = (
    Way("plain tuning", "LoRA and token, plain CFG", PLAIN, "plain CFG"),
    Way("+ SPL", "meaning kept in training", KEPT, "plain CFG"),
    Way("+ Guidance", "weak model at omega {omega}", PLAIN, "Personalization Guidance"),
    Way("+ TEA", "prompt turned, alpha {alpha}", PLAIN, "TEA"),
    ALL,
)
REAL = (
    Way("SPL", "the trained concept, plain CFG", KEPT, "plain CFG"),
    Way("+ Guidance", "weak model at omega {omega}", KEPT, "Personalization Guidance"),
    Way("+ TEA", "prompt turned, alpha {alpha}", KEPT, "TEA"),
    ALL,
)


@dataclass(frozen=True)
class Drawing:
    """What every column has in common."""

    checkpoint: str
    names: dict[str, str]  # training -> the concept's saved name
    side: int
    count: int  # pictures of each prompt, drawn together
    seed: int
    steps: int
    cfg: float
    omega: float
    alpha: float


def graph(template: dict, way: Way, drawing: Drawing, prompt: str) -> dict:
    """The workflow's prompt in API form, filled in and cut down to the branch of `way`."""
    whole = copy.deepcopy(template)
    find = lambda title: workflows.find(whole, title)  # noqa: E731
    find("Base model")["ckpt_name"] = drawing.checkpoint
    find("Load")["name"] = drawing.names[way.training]
    find("Size").update(width=drawing.side, height=drawing.side, batch_size=drawing.count)
    find("Text")["value"] = prompt
    find("Prompt with TEA")["alpha"] = drawing.alpha
    find("Guidance")["omega"] = drawing.omega
    for title in ("CFG", "Guidance", "CFG with TEA"):
        find(title).update(seed=drawing.seed, steps=drawing.steps, cfg=drawing.cfg)
    if way.turned:
        find("Guidance")["positive"] = [workflows.node_id(whole, "Prompt with TEA"), 0]
    kept, new = set(), {workflows.node_id(whole, way.picture)}
    while new:
        kept |= new
        new = {value[0] for node in new for value in whole[node]["inputs"].values() if isinstance(value, list)} - kept
    return {node: whole[node] for node in kept}


def draw(server, template: dict, way: Way, drawing: Drawing, prompt: str) -> list[Image.Image]:
    """The pictures of one column for one prompt."""
    only = graph(template, way, drawing, prompt)
    result = server.run(only)
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in result.images[workflows.node_id(only, way.picture)]]


def scores(references: list[Image.Image]) -> Callable[[list[Image.Image], list[str]], tuple[str, str]]:
    """For the miniature world: a function that puts the judge's two means of pictures and their prompts into words."""
    import numpy as np
    import torch
    from base.fidelity import PromptFidelity, SubjectFidelity
    from base.judge import STORED, Judge
    from base.rooms import load

    bootstrap = load("evaluation.bootstrap")
    judge = Judge.load(STORED)

    def tensor(pictures: list[Image.Image]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures]).movedim(-1, 1) / 255

    photos = tensor(references)
    fidelities = PromptFidelity(judge), SubjectFidelity(judge)

    def told(pictures: list[Image.Image], prompts: list[str]) -> tuple[str, str]:
        prompt, subject = (bootstrap.mean(measure(tensor(pictures), photos, prompts).tolist(), prompts) for measure in fidelities)
        return f"prompt {prompt.value:.0%}  [{prompt.low:.0%}, {prompt.high:.0%}]", f"subject {subject.value:.2f}  [{subject.low:.2f}, {subject.high:.2f}]"

    return told
