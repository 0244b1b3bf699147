"""A checkpoint outside of a graph: (MODEL, CLIP, VAE) as core's CheckpointLoaderSimple gives them."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import torch

from .training import memory_after_run
from .types import Clip, Model, Vae


def load(name: str, beside: Path) -> tuple[Model, Clip, Vae]:
    """(model, clip, vae) of the checkpoint `name`: a file in or below `beside`, an absolute path, or a name in models/checkpoints.

    Only safetensors: other formats can carry code. ValueError with the places where it was looked for.
    """
    path = beside / Path(name).expanduser()
    if not path.is_file():
        found = folder_paths.get_full_path("checkpoints", name)
        if found is None:
            places = ", ".join(map(str, (beside, *folder_paths.get_folder_paths("checkpoints"))))
            raise ValueError(f"There is no checkpoint {name!r} in {places}.")
        path = Path(found)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is no .safetensors file. Other formats can carry code; convert it first.")
    with torch.inference_mode():
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=True, embedding_directory=folder_paths.get_folder_paths("embeddings")
        )[:3]
    missing = [what for what, part in (("model", model), ("text encoder", clip), ("VAE", vae)) if part is None]
    if missing:
        raise ValueError(f"{path.name} has no {' and no '.join(missing)}. Name a whole checkpoint.")
    return model, clip, vae


def unload() -> None:
    """Let the host forget every model that it holds, and give the memory back. Call it when nothing refers to them any more."""
    comfy.model_management.unload_all_models()
    memory_after_run()
