"""Recent runs of this server, for a page that was reloaded or opened after the start.

GET /kindred/runs?workflow=ID on the host's own server returns {"runs": [...]}, each as `NodeRun.as_json`.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import web

from ..formats.curves import COLUMNS, Curves, finite
from . import page

KEPT = 64  # runs; the oldest are dropped
PREPARING, RUNNING, DONE, STOPPED, FAILED = "preparing", "running", "done", "stopped", "failed"

_seen: dict[str, NodeRun] = {}


@dataclass
class NodeRun:
    """One run of one node, as a page shows it.

    workflow, node   the workflow's id and the node's execution id ("4", or "7:4" inside a subgraph)
    before           number of the workflow's earlier runs that its file knows
    order            number of this run; pages sort by it, because clocks may be wrong and differ between machines
    state            preparing, running, done, stopped (by the host's interrupt) or failed
    note             a sentence for the user
    hint             the note while there is no other
    started, ended   seconds since the epoch
    previews         {step, prompt, image: {filename, subfolder, type}}, the image as the host's /view serves it
    marks            {step, heldout, likeness, prompt} of each measured step
    best             the best measured step so far
    kept             the measured steps whose files are kept
    watching         share of the time since the first step that went into watching; None before the first mark
    """

    workflow: str | None
    node: str | None
    prompt_id: str | None
    steps: int
    tokens: list[str]
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    started: float = field(default_factory=time.time)
    before: int = 0
    state: str = PREPARING
    step: int = 0
    note: str = ""
    hint: str = ""
    previews: list[dict] = field(default_factory=list)
    marks: list[dict] = field(default_factory=list)
    best: int | None = None
    watching: float | None = None
    kept: list[int] = field(default_factory=list)
    ended: float | None = None

    def __post_init__(self):
        self.order = 1 + max([self.before, *(run.order for run in _seen.values() if run.workflow == self.workflow)])
        self.curves = Curves(self.tokens)
        self._times: deque[float] = deque(maxlen=33)  # of the latest steps
        self._first: tuple[int, float] | None = None  # (step, time) of this session's first step: a continued run does not begin at 1
        if self.workflow and self.node:
            _seen[self.id] = self
            while len(_seen) > KEPT:
                del _seen[next(iter(_seen))]

    def restore(self, steps: list, marks: list = ()) -> None:
        """Add the steps and marks of earlier sessions to a continued run."""
        for measured in steps:
            self._keep(measured)
        for mark in marks:
            self.mark(mark)

    def mark(self, mark, best: int | None = None, watching: float | None = None, kept: Sequence[int] = ()) -> None:
        """Add what was measured after a step."""
        self.marks.append({name: getattr(mark, name) for name in ("step", "heldout", "likeness", "prompt")})
        self.best, self.watching, self.kept = best, watching, list(kept)

    def add(self, measured) -> None:
        """Add a step that has just ended."""
        now = time.monotonic()
        self._times.append(now)
        self._first = self._first or (measured.step, now)
        self.state, self.note = RUNNING, self.hint
        self._keep(measured)

    def _keep(self, measured) -> None:
        self.step = measured.step
        self.curves.add(measured.step, {name: getattr(measured, name) for name in COLUMNS}, measured.drift)

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the mean time of this session's steps, previews included; None before the second step."""
        done = self.step - self._first[0] if self._first else 0
        return (self._times[-1] - self._first[1]) / done * (self.steps - self.step) if done else None

    @property
    def steps_per_second(self) -> float | None:
        """Speed of the latest 32 steps; None before the second step."""
        seconds = self._times[-1] - self._times[0] if len(self._times) > 1 else 0
        return (len(self._times) - 1) / seconds if seconds else None

    def head(self) -> dict:
        """All fields except the curves and previews, as in the kindred.run event."""
        return {
            **{
                name: getattr(self, name)
                for name in (
                    "id",
                    "workflow",
                    "node",
                    "prompt_id",
                    "started",
                    "order",
                    "state",
                    "step",
                    "steps",
                    "tokens",
                    "note",
                    "hint",
                    "best",
                    "watching",
                    "kept",
                )
            },
            "seconds_left": self.seconds_left,
            "steps_per_second": self.steps_per_second,
            "seconds": (self.ended or time.time()) - self.started,
        }

    def end(self, state: str, note: str = "") -> None:
        self.state, self.note, self.ended = state, note, time.time()

    def as_json(self) -> dict:
        return finite({**self.head(), "curves": self.curves.as_json(), "previews": list(self.previews), "marks": list(self.marks)})


def add_route() -> None:
    """Add the route when the host loads the pack. Does nothing if there is no server, as in a program that embeds ComfyUI."""
    if page.server() is None:
        return

    @page.server().routes.get("/kindred/runs")
    async def runs(request: web.Request) -> web.Response:
        workflow = request.query.get("workflow")
        return web.json_response({"runs": [run.as_json() for run in list(_seen.values()) if run.workflow == workflow]})
