"""What the scoring models share: a local folder in transformers' layout, and pixels as its processors take them."""

from __future__ import annotations

from pathlib import Path

import torch


def local_folder(folder: Path, model: str) -> str:
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r}: expected a folder in transformers' layout (config.json, model.safetensors, ...) with {model}; nothing is downloaded."
        )
    return str(folder)


def pixels(images: torch.Tensor) -> list:
    """To what every image processor takes: a list of uint8 [H, W, 3] arrays."""
    return list((images.clamp(0, 1) * 255).round().byte().movedim(1, -1).cpu().numpy())


def features(output) -> torch.Tensor:
    """transformers 5 wraps CLIP's projected features into an output object, 4 returns the tensor."""
    return output if torch.is_tensor(output) else output.pooler_output
