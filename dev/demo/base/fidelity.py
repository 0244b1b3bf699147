"""The miniature world's two measures, which stand where CLIP and DINO stand in the papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .judge import Judge


class PromptFidelity:
    """The miniature world's CLIP-T: the share of the attributes a prompt names (class, colour, accessory, place) that the judge sees."""

    def __init__(self, judge: Judge):
        self.name, self.against, self.judge = "prompt fidelity", "prompt", judge

    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        wanted = [self.judge.asked(prompt) for prompt in prompts]
        for prompt, wish in zip(prompts, wanted, strict=True):
            if not wish:
                raise ValueError(f"prompt {prompt!r}: it names nothing that the judge knows ({', '.join(w for ws in self.judge.values.values() for w in ws)}).")
        return torch.tensor([sum(found.values()) / len(found) for found in self.judge.right(images, wanted)])


class SubjectFidelity:
    """The miniature world's CLIP-I and DINO: mean cosine of the judge's identity vectors with the references'."""

    def __init__(self, judge: Judge):
        self.name, self.against, self.judge = "subject fidelity", "references", judge

    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return (self.judge.identity(images) @ self.judge.identity(references).T).mean(1)
