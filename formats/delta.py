"""`delta` files of Custom Diffusion's authors (CVPR 2023): whole K and V weights, or factors of their differences, and the tokens' vectors.

delta.bin                  {"unet": {layer: weight}, "modifier_token": {"<new1>": vector}}: their code for diffusers
delta_epoch=000004.ckpt    {"state_dict": {"model.diffusion_model.<layer>": weight, "embed": [tokens, width]}}: their first code
A compressed weight is {"u": [out, rank], "v": [rank, in]}, the factors of the difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from . import pickled, token_file
from .token import LearnedToken

_NAME = re.compile(r"delta[^/]*\.(?:bin|ckpt)")
_MAX_FILE = 4 * 2**30  # bytes


def is_delta(name: str) -> bool:
    """Is this the name of a delta file?"""
    return _NAME.fullmatch(name) is not None


def load(path: Path, widths: Mapping[str, int]) -> tuple[dict[str, torch.Tensor], list[LearnedToken]]:
    """(the weights in Custom Diffusion's layout, or factors under names that core knows; the tokens). ValueError with the path."""
    content = pickled.read(path, _MAX_FILE, "a concept")
    if not isinstance(content, Mapping):
        raise ValueError(f"The file holds no Custom Diffusion weights: {str(path)!r}")
    tokens = _token_vectors(content.get("modifier_token"))
    if isinstance(content.get("unet"), Mapping):
        if "text_encoder" in content:
            raise ValueError(f"The file also holds a whole text encoder, which a concept cannot change. Train it with tokens instead: {str(path)!r}")
        if content.get("modifier_token_2"):
            raise ValueError(f"The file was made for SDXL. Only delta files for Stable Diffusion 1 and 2 can be read: {str(path)!r}")
        weights = {f"unet.{name}": value for name, value in content["unet"].items()}
    elif isinstance(content.get("state_dict"), Mapping):
        weights = {str(name).removeprefix("model."): value for name, value in content["state_dict"].items()}
        vectors = weights.pop("embed", None)
        if isinstance(vectors, torch.Tensor):  # they have no names in the file; the authors' code uses these
            tokens |= {f"<new{index + 1}>": vector for index, vector in enumerate(vectors.reshape(-1, vectors.shape[-1]))}
    else:
        raise ValueError(f"The file holds no Custom Diffusion weights ('unet' or 'state_dict'): {str(path)!r}")
    state: dict[str, torch.Tensor] = {}
    for name, value in weights.items():
        layer = str(name).removesuffix(".weight")
        if isinstance(value, Mapping) and isinstance(value.get("u"), torch.Tensor) and isinstance(value.get("v"), torch.Tensor):
            state |= {f"{layer}.lora_up.weight": value["u"], f"{layer}.lora_down.weight": value["v"]}
        elif isinstance(value, torch.Tensor):
            attention, _, part = layer.rpartition(".")
            prefix = attention if layer.startswith("diffusion_model.") else f"{attention}.processor"
            state[f"{prefix}.{part}_custom_diffusion.weight"] = value
        else:
            raise ValueError(f"The layer {layer!r} has the type {type(value).__name__}; expected a weight or its factors: {str(path)!r}")
    return state, [token_file.token(name, vector, widths, path) for name, vector in tokens.items()]


def _token_vectors(content: object) -> dict[str, torch.Tensor]:
    """Token -> vector; empty if `content` is not a table."""
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)} if isinstance(content, Mapping) else {}
