"""Shared by the scoring models: a local folder in transformers' layout, and pixels as its processors take them."""

from __future__ import annotations

from pathlib import Path

import torch


def local_folder(folder: Path, model: str) -> str:
    """`folder` as a string. Raises ValueError if it has no config.json; `model` describes what it should hold."""
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"The chosen folder has no config.json. Put {model} in transformers' layout there (config.json, model.safetensors, ...); nothing is downloaded. "
            f"({folder})"
        )
    return str(folder)


def pixels(images: torch.Tensor) -> list:
    """`images` [B, 3, H, W] in 0..1 as image processors take them: a list of uint8 [H, W, 3] arrays."""
    return list((images.clamp(0, 1) * 255).round().byte().movedim(1, -1).cpu().numpy())


def features(output) -> torch.Tensor:
    """CLIP's projected features. transformers 5 wraps them in an output object, 4 returns the tensor."""
    return output if torch.is_tensor(output) else output.pooler_output
