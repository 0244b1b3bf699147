"""A concept as Custom Diffusion in diffusers leaves it, and ClassDiffusion's authors with it: a folder with the weights and a file for each token.

FOLDER/pytorch_custom_diffusion_weights.bin   (or .safetensors) whole K and V weights
FOLDER/<new1>.bin                             {"<new1>": vector}; named .bin even where its bytes are safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from . import pickled, safefile, token_file
from .token import LearnedToken

WEIGHTS = ("pytorch_custom_diffusion_weights.safetensors", "pytorch_custom_diffusion_weights.bin")
_MAX_WEIGHTS = 4 * 2**30  # bytes; SDXL's K and V in float32 have 1.3 GB
_MAX_TOKEN = 2**20  # what is larger in such a folder belongs to the trainer's own state
_TRAINERS_STATE = ("optimizer", "scheduler", "scaler", "random_states", "pytorch_lora_weights", "pytorch_model", "model")


def weights_file(folder: Path) -> Path | None:
    """The weights in `folder`, safetensors before a pickle; None when it holds no concept."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def load(folder: Path, widths: Mapping[str, int]) -> tuple[dict[str, torch.Tensor], list[LearnedToken]]:
    """(the weights in Custom Diffusion's layout, the tokens in the order of their names). ValueError with the path of what cannot be read."""
    weights = weights_file(folder)
    if weights is None:
        raise ValueError(f"There is no {WEIGHTS[1]!r} in {str(folder)!r}.")
    content = safefile.read(weights)[0] if pickled.is_safetensors(weights) else pickled.read(weights, _MAX_WEIGHTS, "a concept")
    if not isinstance(content, dict) or not any("_custom_diffusion." in str(key) for key in content):
        raise ValueError(f"{str(weights)!r} holds no Custom Diffusion weights ('..._custom_diffusion.weight').")
    tokens = [token_file.load(path, widths) for path in sorted(folder.iterdir()) if path != weights and _may_be_token(path)]
    return {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}, tokens


def _may_be_token(path: Path) -> bool:
    ending = path.suffix.lower() in token_file.EXTENSIONS
    return ending and path.is_file() and path.name not in WEIGHTS and not path.stem.startswith(_TRAINERS_STATE) and path.stat().st_size <= _MAX_TOKEN
