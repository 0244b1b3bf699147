"""Concepts in folders of other tools: a file of weights, and a file for each token.

FOLDER/pytorch_custom_diffusion_weights.bin   (or .safetensors) whole K and V weights: Custom Diffusion in diffusers, ClassDiffusion's authors
FOLDER/adapter_model.safetensors              (or .bin) PEFT's adapter, or one in each of FOLDER/unet, FOLDER/text_encoder ...
FOLDER/pytorch_lora_weights.safetensors       (or .bin) diffusers' LoRA
FOLDER/delta.bin, FOLDER/delta_epoch=....ckpt  Custom Diffusion's authors' own files, tokens included
FOLDER/<new1>.bin                             {"<new1>": vector}; named .bin even if its content is safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from . import delta, foreign, pickled, safefile, token_file
from .token import LearnedToken

_WHOLE = ("pytorch_custom_diffusion_weights.safetensors", "pytorch_custom_diffusion_weights.bin")
_LORA = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
WEIGHTS = (*_WHOLE, *foreign.ADAPTER, *_LORA)
_MAX_WEIGHTS = 4 * 2**30  # bytes; SDXL's K and V in float32 have 1.3 GB
_MAX_TOKEN = 2**20  # bytes; larger files in such a folder belong to the trainer's own state
_TRAINERS_STATE = ("optimizer", "scheduler", "scaler", "random_states", "pytorch_lora_weights", "pytorch_model", "model")


def weights_file(folder: Path) -> Path | None:
    """The file of weights in `folder`, safetensors before a pickle; None if it holds no concept."""
    adapters = foreign.adapter_files(folder)
    whole, lora = (next((folder / name for name in names if (folder / name).is_file()), None) for names in (_WHOLE, _LORA))
    deltas = sorted(file for file in folder.iterdir() if delta.is_delta(file.name) and file.is_file()) if folder.is_dir() else []
    return whole or next(iter(adapters.values()), None) or lora or next(iter(deltas), None)


def is_weights(name: str) -> bool:
    """Does a folder with a file of this name hold a concept?"""
    return name in WEIGHTS or delta.is_delta(name)


def folder_of(file: Path) -> Path:
    """The concept's folder of a file of weights: for PEFT's `unet/adapter_model.safetensors`, the folder above `unet`."""
    return file.parent.parent if file.name in foreign.ADAPTER and file.parent.name in foreign.COMPONENTS else file.parent


def load(folder: Path, widths: Mapping[str, int]) -> tuple[dict[str, torch.Tensor], list[LearnedToken], dict[str, str]]:
    """(the weights in their layout, the tokens in the order of their names, the weights' metadata). ValueError with the path of an unreadable file."""
    weights = weights_file(folder)
    if weights is None:
        raise ValueError(f"The folder holds no weights of a concept, such as {WEIGHTS[1]!r}: {str(folder)!r}")
    if delta.is_delta(weights.name):
        if sum(delta.is_delta(file.name) for file in folder.iterdir()) > 1:
            raise ValueError(f"The folder holds several 'delta' files. Move the one that you want into a folder of its own: {str(folder)!r}")
        return *delta.load(weights, widths), {}
    tokens = [token_file.load(path, widths) for path in sorted(folder.iterdir()) if path != weights and _may_be_token(path)]
    if weights.name in foreign.ADAPTER:
        state, metadata = foreign.load_adapters(folder)
        return state, tokens, metadata
    content, metadata = safefile.read(weights) if pickled.is_safetensors(weights) else (pickled.read(weights, _MAX_WEIGHTS, "a concept"), {})
    if not isinstance(content, dict) or (weights.name in _WHOLE and not any("_custom_diffusion." in str(key) for key in content)):
        raise ValueError(f"The file holds no Custom Diffusion weights ('..._custom_diffusion.weight'): {str(weights)!r}")
    state = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if weights.name in _LORA:
        state, metadata, bundled = foreign.complete(weights, state, metadata, widths)
        tokens += bundled
    return state, tokens, metadata


def _may_be_token(path: Path) -> bool:
    ending = path.suffix.lower() in token_file.EXTENSIONS
    return ending and path.is_file() and path.name not in WEIGHTS and not path.stem.startswith(_TRAINERS_STATE) and path.stat().st_size <= _MAX_TOKEN
