"""What other tools keep beside or inside of a LoRA file: PEFT's configuration, folders for each part of a pipeline, bundled embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from . import pickled, safefile, text_file, token_file
from .layouts import ADAPTER_METADATA, is_wrapped
from .token import LearnedToken

ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")  # PEFT's file
CONFIGURATION = "adapter_config.json"
COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")  # diffusers' names for the parts of a pipeline
_LARGEST_CONFIGURATION = 4 * 2**20  # bytes
_LARGEST = 4 * 2**30
State = dict[str, torch.Tensor]


def complete(path: Path, state: State, metadata: Mapping[str, str], widths: Mapping[str, int]) -> tuple[State, dict[str, str], list[LearnedToken]]:
    """(the weights, their metadata, the tokens) of a LoRA file `path` whose tensors are `state`.

    Embeddings that OneTrainer and A1111 bundle become tokens; PEFT's configuration, where it lies beside the file, becomes metadata.
    """
    metadata = dict(metadata)
    beside = path.parent / CONFIGURATION
    if path.name in ADAPTER and is_wrapped(state) and ADAPTER_METADATA not in metadata and beside.is_file():
        metadata[ADAPTER_METADATA] = json.dumps(_configuration(beside))
    state, tokens = token_file.unbundle(path, state, widths)
    return state, metadata, tokens


def adapter_files(folder: Path) -> dict[str, Path]:
    """Component -> PEFT's file in `folder`: one for each part of a pipeline in a folder of its own, or one under "" (or the folder's own name)."""
    found = {component: file for component in COMPONENTS if (file := _first(folder / component))}
    if not found and (file := _first(folder)):
        found = {folder.name if folder.name in COMPONENTS else "": file}
    return found


def load_adapters(folder: Path) -> tuple[State, dict[str, str]]:
    """(all weights, with the component in front; their configuration as diffusers' metadata has it). ValueError with the path of what cannot be read."""
    state: State = {}
    settings: dict[str, object] = {}
    for component, file in adapter_files(folder).items():
        front = f"{component}." if component else ""
        content = safefile.read(file)[0] if pickled.is_safetensors(file) else pickled.read(file, _LARGEST, "an adapter")
        if not isinstance(content, dict):
            raise ValueError(f"{str(file)!r} holds no table of weights. Export the adapter again.")
        state |= {f"{front}{key}": value for key, value in content.items() if isinstance(value, torch.Tensor)}
        if (beside := file.parent / CONFIGURATION).is_file():
            settings |= {f"{front}{key}": value for key, value in _configuration(beside).items()}
    return state, {ADAPTER_METADATA: json.dumps(settings)} if settings else {}


def _first(folder: Path) -> Path | None:
    return next((folder / name for name in ADAPTER if (folder / name).is_file()), None)


def _configuration(path: Path) -> dict[str, object]:
    """The configuration in `path`. ValueError with the path where it is none."""
    try:
        found = text_file.parse_json(text_file.read(path, _LARGEST_CONFIGURATION, "PEFT's configuration"))
        if not isinstance(found, dict):
            raise ValueError("it is not a table of settings")
    except (OSError, ValueError) as error:
        raise ValueError(f"PEFT's configuration cannot be read ({str(error) or type(error).__name__}). Export the adapter again: {str(path)!r}") from error
    return found
