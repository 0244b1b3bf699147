"""Shared by the scoring models: a local folder in transformers' layout, and pixels as its processors take them."""

from __future__ import annotations

from collections.abc import Callable
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


class Remembered:
    """A function of a tensor that keeps its latest values on the CPU: while a concept is trained, pictures are compared with the same photos again and again."""

    MOST = 16  # as many concepts as a run has, and more

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
        self.function = function
        self.known: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        for tensor, value in self.known:
            if tensor is given:
                return value
        value = self.function(given).cpu()
        self.known = [*self.known[1 - self.MOST :], (given, value)]
        return value
