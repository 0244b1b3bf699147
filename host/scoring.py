"""What scores pictures: the models that a user has put into `models/evaluation`, and the device they run on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import comfy.model_management
import folder_paths
import torch

from ..formats import text_file
from . import listing

FOLDER = "evaluation"


def models(types: Collection[str]) -> list[str]:
    """Names of the folders in transformers' layout that hold a model of one of `types` (`model_type` in config.json), sorted."""
    return [name for name in listing.folders(root()) if _type(root() / name / "config.json") in types]


def root() -> Path:
    return Path(folder_paths.models_dir) / FOLDER


def model_folder(name: str) -> Path:
    """The folder of that name. ValueError when it lies outside, or is gone."""
    place = (root() / name).resolve()
    if not place.is_relative_to(root().resolve()) or not (place / "config.json").is_file():
        raise ValueError(f"There is no model {name!r} in {root()}. Put its folder there (config.json, model.safetensors, ...) and press R to refresh the list.")
    return place


def device() -> torch.device:
    """Where the host computes. The scorers are small and stay for one run only, so they make themselves room by the host's own means."""
    return comfy.model_management.get_torch_device()


def make_room(gigabytes: float = 4.0) -> None:
    """Have the host unload what it does not need at the moment."""
    comfy.model_management.free_memory(gigabytes * 1e9, device())


def _type(config: Path) -> str:
    try:
        return text_file.parse_json(text_file.read(config, 2**20, "a model's configuration")).get("model_type", "")
    except (OSError, ValueError, AttributeError):
        return ""
