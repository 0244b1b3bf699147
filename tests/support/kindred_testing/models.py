"""Small real models, made with the host's own classes and loaded by the host's own loaders."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from .host import BASE, start_host
from .standalone import script


@functools.cache
def sd15_checkpoint(seed: int = 0, dtype: str = "float16") -> Path:
    """The demo's reduced SD 1.5 checkpoint with random weights; made once a session for each seed and dtype."""
    start_host()
    import torch

    path = BASE / "models" / "checkpoints" / f"tiny-{seed}-{dtype}.safetensors"
    return script("dev/demo/random_base.py").write(path, seed=seed, dtype=getattr(torch, dtype))


def load(path: Path):
    """(model, clip, vae) as the host's CheckpointLoaderSimple gives them, under inference mode like in a running graph."""
    import torch

    start_host()
    nodes = importlib.import_module("nodes")
    folder_paths = importlib.import_module("folder_paths")
    folder = folder_paths.get_folder_paths("checkpoints")[0]
    assert Path(path).parent == Path(folder), f"{path} is not in the host's checkpoint folder {folder}"
    with torch.inference_mode():
        return nodes.CheckpointLoaderSimple().load_checkpoint(Path(path).name)


def sd15(seed: int = 0):
    """`load(sd15_checkpoint(seed))` without the ten layers of its text encoder that are exact identities: no number differs, and a step takes half as long.

    By the function that the loader node calls, which can be told so; the node cannot.
    """
    import torch

    path = sd15_checkpoint(seed)
    embeddings = importlib.import_module("folder_paths").get_folder_paths("embeddings")
    fewer = {"clip_l_model_config": {"num_hidden_layers": 2}}
    with torch.inference_mode():
        return importlib.import_module("comfy.sd").load_checkpoint_guess_config(str(path), embedding_directory=embeddings, te_model_options=fewer)[:3]
