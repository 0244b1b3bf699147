"""BLIP2-T (Li et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ..metrics import Scorer
from .transformers_folder import local_folder, pixels


class Blip2:
    """BLIP2-T: the image-text contrastive score of BLIP-2's retrieval model (Li et al. 2023), best query against the prompt."""

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        from transformers import AutoProcessor, Blip2ForImageTextRetrieval

        path = local_folder(folder, "a BLIP-2 retrieval model")
        self.name, self.against, self.device = "BLIP2-T", "prompt", device
        self.model = cast(Any, Blip2ForImageTextRetrieval.from_pretrained(path, local_files_only=True)).eval().to(device)  # its `to` is typed without self
        self.processor = AutoProcessor.from_pretrained(path, local_files_only=True)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        out = []
        for image, prompt in zip(pixels(images), prompts, strict=True):
            inputs = self.processor(images=image, text=prompt, return_tensors="pt").to(self.device)
            out.append(self.model(**inputs, use_image_text_matching_head=False).logits_per_image.max())
        return torch.stack(out).cpu()


def load(folder: Path, device: str | torch.device) -> list[Scorer]:
    return [Blip2(folder, device)]
