"""CLIP, DINO and BLIP-2 as measures. They read weights from a folder that the user has; nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from .metrics import mean_cosine


def _local(folder: Path, model: str) -> str:
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r}: expected a folder in transformers' layout (config.json, model.safetensors, ...) with {model}; nothing is downloaded."
        )
    return str(folder)


def _pixels(images: torch.Tensor) -> list:
    """To what every image processor takes: a list of uint8 [H, W, 3] arrays."""
    return list((images.clamp(0, 1) * 255).round().byte().movedim(1, -1).cpu().numpy())


def _features(output) -> torch.Tensor:
    """transformers 5 wraps CLIP's projected features into an output object, 4 returns the tensor."""
    return output if torch.is_tensor(output) else output.pooler_output


class Clip:
    """CLIP-T (``against="prompt"``) or CLIP-I (``against="references"``); the papers use ViT-B/32 or ViT-L/14 (Radford et al. 2021)."""

    def __init__(self, folder: Path, against: str = "prompt", device: str = "cpu"):
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        if against not in ("prompt", "references"):
            raise ValueError(f"against: found {against!r}, expected 'prompt' or 'references'.")
        place = _local(folder, "a CLIP model")
        self.name, self.against, self.device = {"prompt": "CLIP-T", "references": "CLIP-I"}[against], against, device
        self.model = CLIPModel.from_pretrained(place, local_files_only=True).eval().to(device)
        self.processor = CLIPImageProcessor.from_pretrained(place, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True) if against == "prompt" else None

    def _images(self, images: torch.Tensor) -> torch.Tensor:
        return _features(self.model.get_image_features(**self.processor(_pixels(images), return_tensors="pt").to(self.device)))

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        seen = self._images(images)
        if self.against == "references":
            return mean_cosine(seen, self._images(references)).cpu()
        words = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt").to(self.device)
        return torch.nn.functional.cosine_similarity(seen, _features(self.model.get_text_features(**words)), dim=-1).cpu()


class Dino:
    """DINO-I: mean cosine of ViT-S/16 class tokens with the references' (Caron et al. 2021), the measure most sensitive to identity."""

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import AutoImageProcessor, AutoModel

        place = _local(folder, "a DINO vision transformer")
        self.name, self.device = "DINO", device
        self.model = AutoModel.from_pretrained(place, local_files_only=True).eval().to(device)
        self.processor = AutoImageProcessor.from_pretrained(place, local_files_only=True)

    def _images(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(**self.processor(_pixels(images), return_tensors="pt").to(self.device)).last_hidden_state[:, 0]

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        return mean_cosine(self._images(images), self._images(references)).cpu()


class Blip2:
    """BLIP2-T: the image-text contrastive score of BLIP-2's retrieval model (Li et al. 2023), best query against the prompt."""

    def __init__(self, folder: Path, device: str = "cpu"):
        from transformers import AutoProcessor, Blip2ForImageTextRetrieval

        place = _local(folder, "a BLIP-2 retrieval model")
        self.name, self.device = "BLIP2-T", device
        self.model = Blip2ForImageTextRetrieval.from_pretrained(place, local_files_only=True).eval().to(device)
        self.processor = AutoProcessor.from_pretrained(place, local_files_only=True)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        out = []
        for image, prompt in zip(_pixels(images), prompts, strict=True):
            inputs = self.processor(images=image, text=prompt, return_tensors="pt").to(self.device)
            out.append(self.model(**inputs, use_image_text_matching_head=False).logits_per_image.max())
        return torch.stack(out).cpu()
