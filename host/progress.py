"""What a long run tells the artist: the host's progress bar, a line of text on the node, and events over the host's own websocket."""

from __future__ import annotations

import dataclasses
import time

import comfy.utils
from server import PromptServer

EVENT = "kindred.training"


class TrainingProgress:
    """Reports steps of a node. Events are sent at most ten times a second and for the last step, so that watching costs nothing."""

    INTERVAL = 0.1

    def __init__(self, node_id: str | None, steps: int):
        self.node_id, self.steps = node_id, steps
        self.bar = comfy.utils.ProgressBar(steps, node_id)
        self._started = self._sent = 0.0

    def encoding(self, done: int, total: int) -> None:
        self._text(f"encoding photos {done}/{total}")

    def step(self, measured) -> None:
        """Report one step: a dataclass with `step`, `loss` and whatever else; all its fields travel with the event."""
        step, measures = measured.step, dataclasses.asdict(measured)
        now = time.monotonic()
        self._started = self._started or now
        self.bar.update_absolute(step)
        if now - self._sent < self.INTERVAL and step not in (1, self.steps):
            return
        self._sent = now
        left = (now - self._started) / (step - 1) * (self.steps - step) if step > 1 else None
        self._text(f"step {step}/{self.steps}   loss {measures['loss']:.4f}" + (f"   {_clock(left)} left" if left is not None else ""))
        server = PromptServer.instance
        if server.client_id is not None:  # only to whoever queued this run
            server.send_sync(
                EVENT, {"node": self.node_id, "prompt_id": server.last_prompt_id, "steps": self.steps, "seconds_left": left, **measures}, server.client_id
            )

    def _text(self, line: str) -> None:
        server = PromptServer.instance
        if self.node_id is not None and server.client_id is not None:
            server.send_progress_text(line, self.node_id, server.client_id)


def _clock(seconds: float) -> str:
    seconds = round(seconds)
    return (
        f"{seconds} s" if seconds < 60 else f"{seconds // 60}:{seconds % 60:02d} min" if seconds < 3600 else f"{seconds // 3600}:{seconds % 3600 // 60:02d} h"
    )
