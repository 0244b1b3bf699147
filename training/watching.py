"""Watching a run: at some steps, previews are drawn and scored and the held-out loss is measured. Each such step leaves a mark in the history.

Nothing of it reaches the training: `tests/training/test_watching.py` holds a watched run against one that nobody watches, bit for bit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from . import best
from .measures import Mark
from .preview import Preview
from .run import Run
from .scoring import Drawn, Scoring, chosen
from .watch_settings import WatchSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What a page or a terminal shows of a mark.

    best   the best step so far, or None
    share  of the run's time that watching has taken, 0..1
    kept   the steps whose files can be used
    """

    mark: Mark
    best: int | None
    share: float
    kept: list[int]


@dataclass
class Watch:
    """Given to `train`.

    preview        None: nothing is drawn
    scoring        None: the previews are not scored
    stop_after     measured steps without a better one after which `enough` ends the run; 0 = never
    heldout_every  steps between two measurements of the held-out loss, which is also measured at each preview; 0 = never
    show           called with (steps done, the pictures, the run's folder or None)
    report         called with each mark
    tell           called with a sentence for the artist
    """

    preview: Preview | None = None
    scoring: Scoring | None = None
    heldout_every: int = 0
    stop_after: int = 0
    show: Callable[[int, list[Drawn], Path | None], None] = field(default=lambda *_: None, repr=False)
    report: Callable[[Seen], None] = field(default=lambda _: None, repr=False)
    tell: Callable[[str], None] = field(default=log.warning, repr=False)
    _began: float = field(default=0.0, init=False, repr=False)
    _spent: float = field(default=0.0, init=False, repr=False)

    def begin(self) -> None:
        """The first step begins: what share of the time goes into watching is counted from here."""
        self._began, self._spent = time.monotonic(), 0.0

    def spent(self, seconds: float) -> None:
        """Watching has taken these seconds more."""
        self._spent += seconds

    @property
    def share(self) -> float:
        whole = time.monotonic() - self._began
        return self._spent / whole if whole > 0 else 0.0

    def due(self, run: Run, done: int) -> bool:
        """Is there something to see or to measure after `done` steps that has no mark yet? A run that was stopped in mid-measurement lacks it."""
        return (self._draws(run, done) or self._measures(run, done)) and all(mark.step != done for mark in run.history.marks)

    def look(self, run: Run, done: int) -> None:
        """Draw, score and measure what is due, and add the mark. OSError if a picture cannot be written; the mark is there all the same."""
        likeness = prompt = None
        drawn: list[Drawn] = []

        def score(pictures: list[Drawn]) -> None:
            nonlocal likeness, prompt
            likeness, prompt = self._score(pictures, run)

        if self.preview is not None and self._draws(run, done):
            drawn = self.preview.draw(run, score if self.scoring else None)
        heldout = run.heldout.loss(run) if self._measures(run, done) else None
        run.history.marks.append(Mark(done, heldout, likeness, prompt, bool(drawn)))
        if drawn:
            self.show(done, drawn, run.folder)

    def enough(self, marks: list[Mark]) -> bool:
        """Has the run come to a plateau? The rule: `stop_after` candidates have been measured since the best one, by the rule of `best`."""
        found = best.best(marks) if self.stop_after else None
        return found is not None and sum(mark.step > found for mark in best.candidates(marks)) >= self.stop_after

    def _score(self, drawn: list[Drawn], run: Run) -> tuple[float | None, float | None]:
        """A scorer that fails, for want of memory or by a prompt that it cannot judge, costs the scores and never the training."""
        assert self.scoring is not None
        try:
            return self.scoring.score(drawn, run.concepts)
        except Exception as error:
            log.warning("Kindred: previews could not be scored.", exc_info=not isinstance(error, ValueError))
            self.tell(f"The previews could not be scored, and will not be any more in this run. Training goes on. ({error})")
            self.scoring = None
            return None, None

    def _draws(self, run: Run, done: int) -> bool:
        return self.preview is not None and (done % self.preview.every == 0 or done == run.settings.steps)

    def _measures(self, run: Run, done: int) -> bool:
        every = self.heldout_every
        return bool(every) and (done % every == 0 or done == run.settings.steps or self._draws(run, done))


def make_watch(settings: WatchSettings, show=None, report=None, tell=None, scoring: Scoring | None = None) -> Watch | None:
    """The watch that a node's or a recipe's settings ask for, or None. `scoring` takes the place of the settings' models.

    Raises ValueError, before anything is trained, for a model that cannot be loaded.
    """
    if not (settings.preview_every or settings.heldout_every):
        return None
    preview = None
    if settings.preview_every:
        prompts = tuple(line.strip() for line in settings.preview_prompt.splitlines() if line.strip())
        preview = Preview(settings.preview_every, prompts, omega=settings.preview_omega, cfg=settings.preview_cfg)
        scoring = scoring or chosen(settings.scorers)
    hooks = {name: hook for name, hook in (("show", show), ("report", report), ("tell", tell)) if hook is not None}
    return Watch(preview, scoring if preview else None, settings.heldout_every, settings.stop_after, **hooks)
