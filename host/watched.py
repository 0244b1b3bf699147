"""The runs that this server has seen lately, for a page that was not there from the start: reloaded, or opened on another machine.

GET /kindred/runs?workflow=ID gives {"runs": [...]}, each as `WatchedRun.as_json` has it. The route is on the host's own server.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field

from aiohttp import web

from ..formats.curves import COLUMNS, Curves, finite
from . import page

KEPT = 64  # runs; an hour of restless trying
PREPARING, RUNNING, DONE, STOPPED, FAILED = "preparing", "running", "done", "stopped", "failed"

_seen: dict[str, WatchedRun] = {}


@dataclass
class WatchedRun:
    """One run of one node, as a page shows it.

    workflow, node   where it runs: the workflow's id and the node's execution id ("4", or "7:4" inside a subgraph)
    before, order    how many runs of the workflow its saved ones knew of, and this one's number: clocks may be wrong, and differ between machines
    state            preparing, running, done, stopped (by the host's interrupt) or failed
    note             a sentence for the artist;  hint: one that stands there while there is no other
    previews         {step, image: {filename, subfolder, type}}, the image as the host's /view serves it
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
    ended: float | None = None

    def __post_init__(self):
        self.order = 1 + max([self.before, *(run.order for run in _seen.values() if run.workflow == self.workflow)])
        self.curves = Curves(self.tokens)
        self._times: deque[float] = deque(maxlen=33)  # of the last steps
        self._first: tuple[int, float] | None = None  # (step, time) of the first step seen: a continued run does not begin at 1
        if self.workflow and self.node:
            _seen[self.id] = self
            while len(_seen) > KEPT:
                del _seen[next(iter(_seen))]

    def restore(self, steps: list) -> None:
        """The steps before this session's, of a run that goes on."""
        for measured in steps:
            self._keep(measured)

    def add(self, measured) -> None:
        """A step that has just been taken."""
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
        """By the mean of all steps of this session, previews included; None before the second."""
        done = self.step - self._first[0] if self._first else 0
        return (self._times[-1] - self._first[1]) / done * (self.steps - self.step) if done else None

    @property
    def steps_per_second(self) -> float | None:
        """Of the last steps."""
        passed = self._times[-1] - self._times[0] if len(self._times) > 1 else 0
        return (len(self._times) - 1) / passed if passed else None

    def head(self) -> dict:
        """All but the curves and previews."""
        return {
            **{
                name: getattr(self, name)
                for name in ("id", "workflow", "node", "prompt_id", "started", "order", "state", "step", "steps", "tokens", "note", "hint")
            },
            "seconds_left": self.seconds_left,
            "steps_per_second": self.steps_per_second,
            "seconds": (self.ended or time.time()) - self.started,
        }

    def end(self, state: str, note: str = "") -> None:
        self.state, self.note, self.ended = state, note, time.time()

    def as_json(self) -> dict:
        return finite({**self.head(), "curves": self.curves.as_json(), "previews": list(self.previews)})


def add_route() -> None:
    """Once, when the host loads the pack. A program that embeds ComfyUI may have no server: then nobody will ask."""
    if page.server() is None:
        return

    @page.server().routes.get("/kindred/runs")
    async def runs(request: web.Request) -> web.Response:
        workflow = request.query.get("workflow")
        return web.json_response({"runs": [run.as_json() for run in list(_seen.values()) if run.workflow == workflow]})
