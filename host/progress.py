"""Progress of a training: the host's progress bar, and events over the host's websocket for the panel on the node.

Events go only to the page that queued the run; a page opened later asks for the runs (host/runs.py). A number that is not finite, such as the
gradient's norm in a step that fp16 skipped, is sent as null, because JSON has no NaN. Every event has {id, node, workflow, prompt_id}, and:

    kindred.run        {state, note, step, steps, tokens, ...}: a run begins, reports a note, or ends
    kindred.training   {steps, note, seconds_left, steps_per_second, step, loss, ... (every field of the step's measures)}
    kindred.preview    {step, prompt, image: {filename, subfolder, type}}, the image as the host's /view serves it; one event a picture
    kindred.mark       {step, heldout, likeness, prompt, best, watching, kept}: what was measured after a step (null = not), the best step so
                       far, the share of the run's time that watching takes, and the steps whose files are kept
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
from .runs import DONE, FAILED, STOPPED, NodeRun

log = logging.getLogger(__name__)

RUN, STEP, PREVIEW, MARK = "kindred.run", "kindred.training", "kindred.preview", "kindred.mark"


class TrainingProgress:
    """Reports one run of a node. Use it as a context manager, so that the end is reported however the run ends.

    Steps are sent at most ten times a second, plus the last one, so that watching costs almost nothing.
    """

    INTERVAL = 0.1

    def __init__(self, node_id: str | None, steps: int, tokens: list[str] = (), extra_pnginfo: dict | None = None):
        workflow, before = workflow_id(extra_pnginfo), runs_before(extra_pnginfo)
        self.run = NodeRun(workflow, node_id, getattr(page.server(), "last_prompt_id", None), steps, list(tokens), before=before)
        self.bar = comfy.utils.ProgressBar(steps, node_id)
        self._sent = 0.0
        self._warnings: list[str] = []  # stay on the node until the end, newest first

    def __enter__(self):
        self._send(RUN, self.run.head())
        return self

    def __exit__(self, kind, error, _trace) -> None:
        if kind is None:
            self.run.end(DONE, " ".join(self._warnings) or self.run.hint)
        elif issubclass(kind, comfy.model_management.InterruptProcessingException):
            self.run.end(STOPPED, " ".join(self._warnings))
        else:
            self.run.end(FAILED, str(error))
        self._send(RUN, self.run.head())

    def encoding(self, done: int, total: int) -> None:
        self._note(f"encoding photos {done}/{total}")

    def warn(self, sentence: str) -> None:
        """Log a warning and show it on the node, where it stays after the run."""
        log.warning("Kindred: %s", sentence)
        self._warnings.insert(0, sentence)
        self._note(" ".join(self._warnings))

    def hint(self, sentence: str) -> None:
        """Log a possible mistake of the user, and show it on the node until a warning takes its place."""
        log.warning("Kindred: %s", sentence)
        self.run.hint = f"{self.run.hint} {sentence}".strip()
        self._note(self.run.hint)

    def restored(self, run, best: int | None, kept: list[int]) -> None:
        """Add what the earlier sessions of a continued training measured and drew.

        run   its `history` has `steps` and `marks`, its `folder` the pictures
        best  its best step so far;  kept: the measured steps whose files are kept
        """
        self.run.restore(run.history.steps, run.history.marks)
        self.run.best, self.run.kept = best, kept
        for mark in run.history.marks:
            number = 1
            while run.folder and (path := _picture(run.folder / "previews", mark.step, number)).is_file():
                self.run.previews.append(self._entry(path, mark.step, ""))
                number += 1
        self._send(RUN, self.run.as_json())

    def step(self, measured) -> None:
        """Report one step.

        measured  a dataclass with `step`, `loss` and more; the event has all of its fields
        """
        now = time.monotonic()
        self.run.add(measured)
        self.run.note = " ".join(self._warnings) or self.run.hint
        self.bar.update_absolute(measured.step)
        if now - self._sent < self.INTERVAL and measured.step != self.run.steps:
            return
        self._sent = now
        head = {"steps": self.run.steps, "note": self.run.note, "seconds_left": self.run.seconds_left, "steps_per_second": self.run.steps_per_second}
        self._send(STEP, {**head, **dataclasses.asdict(measured)})

    def preview(self, step: int, drawn: list, run_folder: Path | None = None) -> None:
        """Write the pictures of a step to `run_folder`/previews (or the host's temp folder) and show them on the node.

        drawn  each with a `prompt` and a `picture` [height, width, 3] in 0..1
        """
        folder = (run_folder or Path(folder_paths.get_temp_directory()) / "kindred" / secrets.token_hex(4)) / "previews"
        folder.mkdir(parents=True, exist_ok=True)
        for number, one in enumerate(drawn, 1):
            path = _picture(folder, step, number)
            picture_file.write(one.picture.numpy(), path)
            entry = self._entry(path, step, one.prompt)
            self.run.previews.append(entry)
            self._send(PREVIEW, entry)

    def mark(self, seen) -> None:
        """Report what was measured after a step: `mark`, the `best` step so far, the `share` of the time that watching takes, the `kept` steps."""
        self.run.mark(seen.mark, seen.best, seen.share, seen.kept)
        self._send(MARK, {**self.run.marks[-1], "best": seen.best, "watching": seen.share, "kept": seen.kept})

    def _entry(self, path: Path, step: int, prompt: str) -> dict:
        """A picture as the page asks the host for it."""
        roots = {"output": folder_paths.get_output_directory(), "temp": folder_paths.get_temp_directory()}
        kind, root = next((kind, root) for kind, root in roots.items() if path.is_relative_to(root))
        subfolder = os.path.relpath(path.parent, root).replace(os.sep, "/")
        return {"step": step, "prompt": prompt, "image": {"filename": path.name, "subfolder": subfolder, "type": kind}}

    def _note(self, sentence: str) -> None:
        self.run.note = sentence
        self._send(RUN, self.run.head())

    def _send(self, event: str, data: dict) -> None:
        run, client = self.run, page.client()
        if client is not None:
            source = {"id": run.id, "node": run.node, "workflow": run.workflow, "prompt_id": run.prompt_id}
            page.server().send_sync(event, finite({**source, **data}), client)


def _picture(folder: Path, step: int, number: int) -> Path:
    """The file of a step's picture `number` (from 1)."""
    return folder / f"step-{step:08d}{f'-{number}' if number > 1 else ''}.png"
