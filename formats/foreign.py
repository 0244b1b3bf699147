"""Companions of other tools' LoRA files: PEFT's configuration, a folder for each part of a pipeline, bundled embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from . import pickled, safefile, text_file, token_file
from .layouts import ADAPTER_METADATA, has_peft_wrapper
from .token import LearnedToken

ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT's file
CONFIGURATION = "adapter_config.json"
COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")  # diffusers' names for the parts of a pipeline
_LARGEST_CONFIGURATION = 4 * 2**20  # bytes
_LARGEST = 4 * 2**30
State = dict[str, torch.Tensor]


def complete(path: Path, state: State, metadata: Mapping[str, str], widths: Mapping[str, int]) -> tuple[State, dict[str, str], list[LearnedToken]]:
    """(the weights, their metadata, the tokens) of a LoRA file `path` whose tensors are `state`.

    Embeddings that OneTrainer and A1111 bundle become tokens. PEFT's configuration, if it is beside the file, becomes metadata.
    """
    metadata = dict(metadata)
    beside = path.parent / CONFIGURATION
    if path.name in ADAPTER and has_peft_wrapper(state) and ADAPTER_METADATA not in metadata and beside.is_file():
        metadata[ADAPTER_METADATA] = json.dumps(_read_configuration(beside))
    state, tokens = token_file.unbundle(path, state, widths)
    return state, metadata, tokens


def adapter_files(folder: Path) -> dict[str, Path]:
    """Component -> PEFT's file: one in a subfolder for each part of a pipeline, or one in `folder` itself, under "" or the folder's own name."""
    files = {component: file for component in COMPONENTS if (file := _first(folder / component))}
    if not files and (file := _first(folder)):
        files = {folder.name if folder.name in COMPONENTS else "": file}
    return files


def load_adapters(folder: Path) -> tuple[State, dict[str, str]]:
    """(all weights, prefixed with their component; the configuration in the form of diffusers' metadata). ValueError with the path of an unreadable file."""
    state: State = {}
    settings: dict[str, object] = {}
    for component, file in adapter_files(folder).items():
        front = f"{component}." if component else ""
        content = safefile.read(file)[0] if pickled.is_safetensors(file) else pickled.read(file, _LARGEST, "an adapter")
        if not isinstance(content, dict):
            raise ValueError(f"The file holds no table of weights. Export the adapter again: {str(file)!r}")
        state |= {f"{front}{key}": value for key, value in content.items() if isinstance(value, torch.Tensor)}
        if (beside := file.parent / CONFIGURATION).is_file():
            settings |= {f"{front}{key}": value for key, value in _read_configuration(beside).items()}
    return state, {ADAPTER_METADATA: json.dumps(settings)} if settings else {}


def _first(folder: Path) -> Path | None:
    return next((folder / name for name in ADAPTER if (folder / name).is_file()), None)


def _read_configuration(path: Path) -> dict[str, object]:
    """The configuration in `path`. ValueError with the path if it is not one."""
    try:
        configuration = text_file.parse_json(text_file.read(path, _LARGEST_CONFIGURATION, "PEFT's configuration"))
        if not isinstance(configuration, dict):
            raise ValueError("it is not a table of settings")
    except (OSError, ValueError) as error:
        raise ValueError(f"PEFT's configuration cannot be read ({str(error) or type(error).__name__}). Export the adapter again: {str(path)!r}") from error
    return configuration
