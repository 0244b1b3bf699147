"""BLIP2-T (Li et al. 2023), and BLIP-T, the same question to BLIP 1 (Li et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from ..metrics import Scorer
from .transformers_folder import local_folder, pixels

FOLDER = "a BLIP-2 or BLIP retrieval model"


class Blip:
    """The image-text contrastive score of a retrieval model, without its matching head: a cosine. BLIP-2: that of the best query.

    `name` says which of the two the folder holds. ClassDiffusion's paper writes BLIP2-T; its released code loads BLIP 1.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu"):
        from transformers import AutoProcessor

        path = local_folder(folder, FOLDER)
        kind = json.loads((Path(path) / "config.json").read_text("utf-8")).get("model_type")
        if kind not in _LOADERS:
            raise ValueError(f"The chosen folder holds a model of the type {kind!r}; expected {FOLDER}. ({path})")
        self.name, model, self.options = _LOADERS[kind](path)
        self.against, self.device, self.model = "prompt", device, cast(Any, model).eval().to(device)
        self.processor = AutoProcessor.from_pretrained(path, local_files_only=True)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        out = []
        for image, prompt in zip(pixels(images), prompts, strict=True):
            inputs = self.processor(images=image, text=prompt, return_tensors="pt").to(self.device)
            result = self.model(**inputs, **self.options)
            out.append((result.itm_score if self.name == "BLIP-T" else result.logits_per_image).max())
        return torch.stack(out).cpu()


def _blip(path: str):
    from transformers import BlipForImageTextRetrieval

    return "BLIP-T", BlipForImageTextRetrieval.from_pretrained(path, local_files_only=True), {"use_itm_head": False}


def _blip2(path: str):
    from transformers import Blip2ForImageTextRetrieval

    return "BLIP2-T", Blip2ForImageTextRetrieval.from_pretrained(path, local_files_only=True), {"use_image_text_matching_head": False}


_LOADERS = {"blip": _blip, "blip-2": _blip2}  # `model_type` in config.json


def load(folder: Path, device: str | torch.device) -> list[Scorer]:
    return [Blip(folder, device)]
