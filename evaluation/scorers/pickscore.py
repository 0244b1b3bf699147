"""PickScore (Kirstain et al. 2023, arXiv 2305.01569): a CLIP ViT-H/14 trained on people's choices between two pictures of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..metrics import Scorer
from .clip import Clip


class PickScore(Clip):
    """exp(logit_scale) * cos(text, picture), as its authors compute it (section 4): about 17 to 24, higher is better."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        super().__init__(folder, "prompt", device)
        self.name = "PickScore"

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return self.model.logit_scale.exp().cpu() * super().__call__(images, references, prompts)


def load(folder: Path, device: str | torch.device) -> list[Scorer]:
    return [PickScore(folder, device)]
