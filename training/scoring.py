"""Scores of a run's previews: likeness to the photos, and fidelity to the prompts, each a mean over the pictures of one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..evaluation import metrics, scorers, scores
from ..formats.token_text import replace_tokens
from ..host import scoring
from .data.concept import Concept


@dataclass(frozen=True)
class Drawn:
    """One preview: [height, width, 3] in 0..1, its prompt as drawn, and the concept whose turn it was (None: the prompt names none by {token} or {class})."""

    picture: torch.Tensor
    prompt: str
    concept: int | None


class Scoring:
    """Scores previews with two of the given scorers: the first one against prompts, the last one against references.

    In the order of `scorers.MODELS` these are CLIP-T, and DINO before CLIP-I, because it is the more sensitive to identity (DreamBooth, section 4.1).
    """

    def __init__(self, given: Sequence[metrics.Scorer]):
        self.prompt = next((one for one in given if one.against == "prompt"), None)
        self.likeness = next((one for one in reversed(given) if one.against == "references"), None)
        models = [getattr(one, "model", None) for one in (self.prompt, self.likeness)]
        self._resident = {id(model): scoring.Resident(model) for model in dict.fromkeys(models) if isinstance(model, torch.nn.Module)}
        self._photos: dict[int, torch.Tensor] = {}

    def score(self, drawn: Sequence[Drawn], concepts: list[Concept]) -> tuple[float | None, float | None]:
        """(likeness, prompt fidelity), each None if no scorer or no picture is for it. Call it in `host.preview.sampling_mode`."""
        words = {concept.token: concept.class_word for concept in concepts}
        likeness: list[float] = []
        prompt: list[float] = []
        for one in drawn:
            image = one.picture.movedim(-1, 0)[None].float()
            spoken = [replace_tokens(one.prompt, words)]  # no scoring model knows the tokens
            if self.prompt is not None:
                prompt += self._ask(self.prompt, image, image, spoken)
            if self.likeness is not None and one.concept is not None:
                likeness += self._ask(self.likeness, image, self._references(one.concept, concepts), spoken)
        return _mean(likeness), _mean(prompt)

    def _ask(self, scorer, image: torch.Tensor, references: torch.Tensor, prompts: list[str]) -> list[float]:
        resident = self._resident.get(id(getattr(scorer, "model", None)))
        if resident is not None:
            scorer.device = resident.load()
        return scorer(image, references, prompts).double().tolist()

    def _references(self, concept: int, concepts: list[Concept]) -> torch.Tensor:
        if concept not in self._photos:
            self._photos[concept] = scores.together([concepts[concept].images], "the photos")
        return self._photos[concept]


def chosen(folders: Mapping[str, str]) -> Scoring | None:
    """The scoring with the user's models, loaded on the CPU. ValueError, before anything is trained, for a folder that does not hold its model."""
    if not folders:
        return None
    return Scoring(scorers.load({kind: scoring.model_folder(name) for kind, name in folders.items()}))


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
