"""Checkpoints outside a graph: (MODEL, CLIP, VAE) as core's CheckpointLoaderSimple loads them."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management
import comfy.sd
import folder_paths
import torch

from .training import free_memory_after_run


def load_checkpoint(name: str, beside: Path):
    """(model, clip, vae) of the checkpoint `name`: a path relative to the folder `beside`, an absolute path, or a name in models/checkpoints.

    Only safetensors, because other formats can carry code. Raises ValueError if there is no such file, if it is not safetensors, or if it
    lacks one of the three parts.
    """
    path = beside / Path(name).expanduser()
    if not path.is_file():
        full = folder_paths.get_full_path("checkpoints", name)
        if full is None:
            folders = ", ".join(map(str, (beside, *folder_paths.get_folder_paths("checkpoints"))))
            raise ValueError(f"There is no checkpoint {name!r}. Correct the name, or put the file into one of these folders: {folders}.")
        path = Path(full)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is not a .safetensors file. Other formats can carry code; convert it first.")
    with torch.inference_mode():
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(
            str(path), output_vae=True, output_clip=True, embedding_directory=folder_paths.get_folder_paths("embeddings")
        )[:3]
    missing = [name for name, part in (("model", model), ("text encoder", clip), ("VAE", vae)) if part is None]
    if missing:
        raise ValueError(f"{path.name} has no {' and no '.join(missing)}. Use a checkpoint that has model, text encoder and VAE in one file.")
    return model, clip, vae


def unload() -> None:
    """Make the host unload every model, and free the memory. Call it when nothing refers to the models any more."""
    comfy.model_management.unload_all_models()
    free_memory_after_run()
