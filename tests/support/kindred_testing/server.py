"""The real server for the tests: the demo's driver in a base directory of its own, with the small checkpoint in place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from .host import COMFYUI, make_base_directory
from .standalone import script

demo_server = script("dev/demo/server.py")
PromptError, Interrupted = demo_server.PromptError, demo_server.Interrupted


class TestServer(demo_server.ComfyServer):
    """`run`, `submit`, `wait`, `interrupt` of the driver; `input_image` puts a picture where LoadImage finds it; `forget` empties the cache."""

    __test__ = False
    CHECKPOINT = "tiny.safetensors"

    def __init__(self, base: Path, arguments: tuple[str, ...] = ()):
        from .models import sd15_checkpoint

        super().__init__(COMFYUI, make_base_directory(base), ("--cpu", *arguments))
        shutil.copy(sd15_checkpoint(), base / "models" / "checkpoints" / self.CHECKPOINT)

    def input_image(self, path: Path) -> str:
        shutil.copy(path, self.base / "input" / path.name)
        return path.name

    def forget(self) -> None:
        """Nothing of the next prompt comes from the executor's cache.

        The host frees between two prompts, and a prompt sent right after the request may still be taken first: so a small one is.
        """
        self.post("/free", {"free_memory": True, "unload_models": True})
        image = {"class_type": "EmptyImage", "inputs": {"width": 1, "height": 1, "batch_size": 1, "color": 0}}
        self.run({"1": image, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})

    def noise_photos(self, folder: str, seed: int = 1, height: int = 70, width: int = 80, count: int = 2) -> str:
        """`count` pictures of noise in a folder of the input folder, for a training that need not learn anything; the folder's name."""
        place = self.base / "input" / folder
        place.mkdir(exist_ok=True)
        draw = np.random.default_rng(seed)
        for index in range(count):
            Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(place / f"{index}.png")
        return folder
