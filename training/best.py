"""The rule that says which measured step was best. Pure numbers.

Two things pull apart while a subject is learned: the pictures become more like the photos, and less like their prompts. Each measure is scaled over the
run, 0 at its worst candidate and 1 at its best, and the best step is the one with the greatest PRODUCT of both: the knee of the two curves. It is Nash's
bargaining solution (The Bargaining Problem, Econometrica 18, 1950) with the worst of the run as the point of disagreement: no step is better in both, and
it does not depend on the units of the two measures, which no two scoring models share.

fit      likeness; without it the held-out loss, lower is better
freedom  prompt fidelity

fit, freedom  the greatest product; of equal ones that with the greater smaller part, then with the greater sum, then the earlier step
likeness      (alone, or with the held-out loss) the earliest step within 5% of its range from the greatest: what comes later only costs the prompt
held-out      the lowest loss (early stopping: Prechelt, 1998); of equal ones the earlier step
prompt        the latest step within 5% of its range from the greatest: before it, less was learned; after it, the prompt is lost

Candidates are the steps with previews if there are any, else all that were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from .measures import Mark

NEAR = 0.05  # of a measure's range over the run
Gains = dict[int, float]  # step -> 0..1


def candidates(marks: Sequence[Mark]) -> list[Mark]:
    """The marks that may be the best step."""
    return [mark for mark in marks if mark.previewed] or [mark for mark in marks if mark.heldout is not None]


def best(marks: Sequence[Mark], pool: Collection[int] | None = None) -> int | None:
    """The best of the steps in `pool` (None: of all candidates), scaled over all candidates. None if nothing was measured.

    pool  the steps whose files are still there: a step whose files are gone cannot be used, so it cannot be the best
    """
    known = candidates(marks)
    likeness, prompt = _gains(known, lambda mark: mark.likeness), _gains(known, lambda mark: mark.prompt)
    heldout = _gains(known, lambda mark: None if mark.heldout is None else -mark.heldout)
    rules: tuple[tuple[bool, Callable[[list[int]], int], Collection[int]], ...] = (
        (bool(likeness and prompt), lambda steps: _knee(steps, likeness, prompt), likeness.keys() & prompt.keys()),
        (bool(likeness), lambda steps: min(_near(steps, likeness)), likeness),
        (bool(heldout and prompt), lambda steps: _knee(steps, heldout, prompt), heldout.keys() & prompt.keys()),
        (bool(heldout), lambda steps: max(steps, key=lambda step: (heldout[step], -step)), heldout),
        (bool(prompt), lambda steps: max(_near(steps, prompt)), prompt),
    )
    for applies, choose, steps in rules:
        if applies:
            open_ = sorted(step for step in steps if pool is None or step in pool)
            return choose(open_) if open_ else None
    return None


def _gains(marks: Sequence[Mark], value: Callable[[Mark], float | None]) -> Gains:
    """Step -> the value scaled over the marks: 0 the lowest, 1 the greatest; 1 for all if they are equal."""
    known = {mark.step: found for mark in marks if (found := value(mark)) is not None}
    if not known:
        return {}
    low, high = min(known.values()), max(known.values())
    return {step: (found - low) / (high - low) if high > low else 1.0 for step, found in known.items()}


def _knee(steps: list[int], one: Gains, other: Gains) -> int:
    return max(steps, key=lambda step: (one[step] * other[step], min(one[step], other[step]), one[step] + other[step], -step))


def _near(steps: list[int], gains: Gains) -> list[int]:
    top = max(gains[step] for step in steps)
    return [step for step in steps if gains[step] >= top - NEAR]
