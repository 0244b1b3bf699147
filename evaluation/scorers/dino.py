"""DINO (Caron et al. 2021); the papers use ViT-S/16."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..metrics import Scorer, mean_cosine
from .transformers_folder import Remembered, local_folder, pixels


class Dino:
    """DINO-I: mean cosine of ViT-S/16 class tokens with the references' (Caron et al. 2021), the measure most sensitive to identity."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        from transformers import AutoImageProcessor, AutoModel

        path = local_folder(folder, "a DINO vision transformer")
        self.name, self.against, self.device = "DINO", "references", device
        self.model = AutoModel.from_pretrained(path, local_files_only=True).eval().to(device)
        self.processor = AutoImageProcessor.from_pretrained(path, local_files_only=True)
        self._photos = Remembered(self._images)

    def _images(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(**self.processor(pixels(images), return_tensors="pt").to(self.device)).last_hidden_state[:, 0]

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return mean_cosine(self._images(images), self._photos(references)).cpu()


def load(folder: Path, device: str | torch.device) -> list[Scorer]:
    return [Dino(folder, device)]
