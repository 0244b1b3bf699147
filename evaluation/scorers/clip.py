"""CLIP-T and CLIP-I (Radford et al. 2021); the papers use ViT-B/32 or ViT-L/14."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ..metrics import Scorer, mean_cosine
from .transformers_folder import Remembered, features, local_folder, pixels


class Clip:
    """CLIP-T (``against="prompt"``) or CLIP-I (``against="references"``); the papers use ViT-B/32 or ViT-L/14 (Radford et al. 2021)."""

    def __init__(self, folder: Path, against: str = "prompt", device: str | torch.device = "cpu", model=None):
        """model: the folder's, if another scorer has loaded it already."""
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        if against not in ("prompt", "references"):
            raise ValueError(f"against: found {against!r}, expected 'prompt' or 'references'.")
        path = local_folder(folder, "a CLIP model")
        self.name, self.against, self.device = {"prompt": "CLIP-T", "references": "CLIP-I"}[against], against, device
        self.model = model or cast(Any, CLIPModel.from_pretrained(path, local_files_only=True)).eval().to(device)  # its `to` is typed without self
        self.processor = CLIPImageProcessor.from_pretrained(path, local_files_only=True)
        self._photos = Remembered(self._images)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True) if against == "prompt" else None

    def _images(self, images: torch.Tensor) -> torch.Tensor:
        return features(self.model.get_image_features(**self.processor(pixels(images), return_tensors="pt").to(self.device)))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        seen = self._images(images)
        if self.against == "references":
            return mean_cosine(seen, self._photos(references)).cpu()
        words = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return torch.nn.functional.cosine_similarity(seen, features(self.model.get_text_features(**words)), dim=-1).cpu()


def load(folder: Path, device: str | torch.device) -> list[Scorer]:
    prompt = Clip(folder, "prompt", device)
    return [prompt, Clip(folder, "references", device, prompt.model)]
