"""What a long run tells the artist: the host's progress bar, and events over the host's own websocket, which the panel on the node draws.

A number that is not finite, such as the gradient's norm in a step that fp16 skipped, is null: JSON has no other word for it.
Events go to whoever queued the run, and to nobody else; who comes later asks (host/watched.py). All carry {id, node, workflow, prompt_id}:
    kindred.run        {state, note, step, steps, tokens, ...}: a run begins, says something, ends
    kindred.training   {steps, note, seconds_left, steps_per_second, step, loss, ... (every field of the step's measures)}
    kindred.preview    {step, image: {filename, subfolder, type}}, the image as the host's /view serves it
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import time
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths

from ..formats import picture_file
from ..formats.curves import finite
from ..formats.workflow import runs_before, workflow_id
from . import page
from .watched import DONE, FAILED, STOPPED, WatchedRun

log = logging.getLogger(__name__)

RUN, STEP, PREVIEW = "kindred.run", "kindred.training", "kindred.preview"


class TrainingProgress:
    """Reports a run of a node: `with TrainingProgress(...) as progress`, so that its end is told, whatever it is.

    Steps are sent at most ten times a second and for the last one, so that watching costs nothing.
    """

    INTERVAL = 0.1

    def __init__(self, node_id: str | None, steps: int, tokens: list[str] = (), extra_pnginfo: dict | None = None):
        workflow, before = workflow_id(extra_pnginfo), runs_before(extra_pnginfo)
        self.run = WatchedRun(workflow, node_id, getattr(page.server(), "last_prompt_id", None), steps, list(tokens), before=before)
        self.bar = comfy.utils.ProgressBar(steps, node_id)
        self._sent = 0.0
        self._told: list[str] = []  # what stays on the node until the end, the newest first

    def __enter__(self):
        self._send(RUN, self.run.head())
        return self

    def __exit__(self, kind, error, _trace) -> None:
        if kind is None:
            self.run.end(DONE, " ".join(self._told) or self.run.hint)
        elif issubclass(kind, comfy.model_management.InterruptProcessingException):
            self.run.end(STOPPED, " ".join(self._told))
        else:
            self.run.end(FAILED, str(error))
        self._send(RUN, self.run.head())

    def encoding(self, done: int, total: int) -> None:
        self._note(f"encoding photos {done}/{total}")

    def tell(self, sentence: str) -> None:
        """A sentence that must not be missed: into the log and onto the node, where it stays when the run ends."""
        log.warning("Kindred: %s", sentence)
        self._told.insert(0, sentence)
        self._note(" ".join(self._told))

    def hint(self, sentence: str) -> None:
        """What looks like a slip: into the log, and onto the node for as long as nothing else is said."""
        log.warning("Kindred: %s", sentence)
        self.run.hint = f"{self.run.hint} {sentence}".strip()
        self._note(self.run.hint)

    def restored(self, steps: list) -> None:
        """The measures of the steps before, of a run that goes on."""
        self.run.restore(steps)
        self._send(RUN, self.run.as_json())

    def step(self, measured) -> None:
        """Report one step: a dataclass with `step`, `loss` and whatever else; all its fields travel with the event."""
        now = time.monotonic()
        self.run.add(measured)
        self.run.note = " ".join(self._told) or self.run.hint
        self.bar.update_absolute(measured.step)
        if now - self._sent < self.INTERVAL and measured.step != self.run.steps:
            return
        self._sent = now
        told = {"steps": self.run.steps, "note": self.run.note, "seconds_left": self.run.seconds_left, "steps_per_second": self.run.steps_per_second}
        self._send(STEP, {**told, **dataclasses.asdict(measured)})

    def preview(self, step: int, picture, place: Path | None = None) -> None:
        """Show a picture [height, width, 3] in 0..1, kept as a file in `place`/previews (without `place`: in the host's temp folder)."""
        kind, root = ("output", folder_paths.get_output_directory()) if place else ("temp", folder_paths.get_temp_directory())
        folder = (place or Path(root) / "kindred" / secrets.token_hex(4)) / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:08d}.png"
        picture_file.write(picture.numpy(), path)
        subfolder = os.path.relpath(folder, root).replace(os.sep, "/")
        shown = {"step": step, "image": {"filename": path.name, "subfolder": subfolder, "type": kind}}
        self.run.previews.append(shown)
        self._send(PREVIEW, shown)

    def _note(self, sentence: str) -> None:
        self.run.note = sentence
        self._send(RUN, self.run.head())

    def _send(self, event: str, data: dict) -> None:
        run, client = self.run, page.client()
        if client is not None:
            where = {"id": run.id, "node": run.node, "workflow": run.workflow, "prompt_id": run.prompt_id}
            page.server().send_sync(event, finite({**where, **data}), client)
