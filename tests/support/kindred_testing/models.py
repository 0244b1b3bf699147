"""Small real models, made with the host's own classes and loaded by the host's own loaders."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

from .host import BASE, ROOT, start_host


@functools.cache
def sd15_checkpoint(seed: int = 0, dtype: str = "float16") -> Path:
    """The demo's reduced SD 1.5 checkpoint with random weights; made once a session for each seed and dtype."""
    start_host()
    import torch

    from .server import _load

    path = BASE / "models" / "checkpoints" / f"tiny-{seed}-{dtype}.safetensors"
    return _load("kindred_demo_random_base", ROOT / "demo" / "random_base.py").write(path, seed=seed, dtype=getattr(torch, dtype))


def load(path: Path, te_model_options: dict | None = None):
    """(model, clip, vae) as the host's CheckpointLoaderSimple gives them, under inference mode like in a running graph."""
    import torch

    start_host()
    host_loader = importlib.import_module("comfy.sd").load_checkpoint_guess_config
    embeddings = importlib.import_module("folder_paths").get_folder_paths("embeddings")
    with torch.inference_mode():
        return host_loader(str(path), output_vae=True, output_clip=True, embedding_directory=embeddings, te_model_options=te_model_options or {})[:3]


def sd15(seed: int = 0):
    """`load(sd15_checkpoint(seed))` without the ten layers of its text encoder that are exact identities: no number differs, and a step takes half as long."""
    return load(sd15_checkpoint(seed), {"clip_l_model_config": {"num_hidden_layers": 2}})
