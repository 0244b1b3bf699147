"""What a long run tells the artist: the host's progress bar, a line of text on the node, and events over the host's own websocket.

Events go to whoever queued the run, and to nobody else:
    kindred.training   {node, prompt_id, steps, seconds_left, step, loss, ... (every field of the step's measures)}
    kindred.preview    {node, prompt_id, step, image: {filename, subfolder, type}}, the image as the host's /view serves it
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import time
from pathlib import Path

import comfy.utils
import folder_paths
import numpy as np
from PIL import Image
from server import PromptServer

from ..formats import picture_file

log = logging.getLogger(__name__)

STEP, PREVIEW = "kindred.training", "kindred.preview"
SHOWN = 512  # pixels: the longer side of a preview on the node


class TrainingProgress:
    """Reports steps of a node. Events are sent at most ten times a second and for the last step, so that watching costs nothing."""

    INTERVAL = 0.1

    def __init__(self, node_id: str | None, steps: int):
        self.node_id, self.steps = node_id, steps
        self.bar = comfy.utils.ProgressBar(steps, node_id)
        self._first: tuple[int, float] | None = None  # (step, time) of the first step seen: a continued run does not begin at 1
        self._sent = 0.0

    def encoding(self, done: int, total: int) -> None:
        self._text(f"encoding photos {done}/{total}")

    def tell(self, sentence: str) -> None:
        """A sentence that must not be missed: into the log and onto the node."""
        log.warning("Kindred: %s", sentence)
        self._text(sentence)

    def step(self, measured) -> None:
        """Report one step: a dataclass with `step`, `loss` and whatever else; all its fields travel with the event."""
        step, now = measured.step, time.monotonic()
        first = self._first is None
        self._first = self._first or (step, now)
        self.bar.update_absolute(step)
        if now - self._sent < self.INTERVAL and not first and step != self.steps:
            return
        self._sent = now
        done = step - self._first[0]
        left = (now - self._first[1]) / done * (self.steps - step) if done else None
        self._text(f"step {step}/{self.steps}   loss {measured.loss:.4f}" + (f"   {_clock(left)} left" if left is not None else ""))
        self._send(STEP, {"steps": self.steps, "seconds_left": left, **dataclasses.asdict(measured)})

    def preview(self, step: int, picture, place: Path | None = None) -> None:
        """Show a picture [height, width, 3] in 0..1: on the node, and as a file in `place`/previews (without `place`: in the host's temp folder)."""
        image = Image.fromarray((picture.clamp(0, 1).numpy() * 255).round().astype(np.uint8))
        self.bar.update_absolute(step, preview=("JPEG", image, SHOWN))
        kind, root = ("output", folder_paths.get_output_directory()) if place else ("temp", folder_paths.get_temp_directory())
        folder = (place or Path(root) / "kindred" / secrets.token_hex(4)) / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:08d}.png"
        picture_file.write(picture.numpy(), path)
        subfolder = os.path.relpath(folder, root).replace(os.sep, "/")
        self._send(PREVIEW, {"step": step, "image": {"filename": path.name, "subfolder": subfolder, "type": kind}})

    def _send(self, event: str, data: dict) -> None:
        server = PromptServer.instance
        if server.client_id is not None:
            server.send_sync(event, {"node": self.node_id, "prompt_id": server.last_prompt_id, **data}, server.client_id)

    def _text(self, line: str) -> None:
        server = PromptServer.instance
        if self.node_id is not None and server.client_id is not None:
            server.send_progress_text(line, self.node_id, server.client_id)


def _clock(seconds: float) -> str:
    seconds = round(seconds)
    return (
        f"{seconds} s" if seconds < 60 else f"{seconds // 60}:{seconds % 60:02d} min" if seconds < 3600 else f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"
    )
