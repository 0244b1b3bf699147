"""Models that score images: the folders in `models/evaluation`, and the device they run on."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import folder_paths
import torch

from ..formats import text_file
from . import listing

FOLDER = "evaluation"


def models() -> dict[str, str]:
    """Name -> `model_type` in config.json, for every folder; sorted by name. "" for a folder that is not in transformers' layout."""
    return {name: text_file.model_type(root() / name) for name in listing.folders(root())}


def root() -> Path:
    """The folder with the models for evaluation."""
    return Path(folder_paths.models_dir) / FOLDER


def model_folder(name: str) -> Path:
    """The folder of the model `name`. Raises ValueError if it is outside `root` or has no config.json."""
    path = (root() / name).resolve()
    if not path.is_relative_to(root().resolve()) or not (path / "config.json").is_file():
        raise ValueError(
            f"There is no evaluation model {name!r}. Put its folder (config.json, model.safetensors, ...) into models/{FOLDER} "
            f"and press R to refresh the list. (Folder: {root()})"
        )
    return path


def device() -> torch.device:
    """The host's compute device. Scorers are small and loaded for one run only; `make_room` frees memory for them."""
    return comfy.model_management.get_torch_device()


class Resident:
    """A scoring model under the host's memory management: `load` brings it to the device, and the host takes it off when it needs the room."""

    def __init__(self, model: torch.nn.Module):
        """model: on the CPU."""
        model.requires_grad_(False)
        holder = torch.nn.Sequential(model)  # the host notes the device on the module, and transformers' models do not allow that
        self.patcher = comfy.model_patcher.ModelPatcher(holder, load_device=device(), offload_device=torch.device("cpu"))

    def load(self) -> torch.device:
        """The device that the model is on now."""
        comfy.model_management.load_models_gpu([self.patcher])
        return self.patcher.load_device


def make_room(gigabytes: float = 4.0) -> None:
    """Make the host unload models until `gigabytes` are free."""
    comfy.model_management.free_memory(gigabytes * 1e9, device())
