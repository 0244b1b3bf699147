"""Going on with a run whose settings are no longer those that it began with.

More steps, other learning rates and other weights of the losses are sound: each step depends on the state before it and on these numbers alone. What
was changed, and after which step, stays in the state and in the metadata of the result. Anything else would make the state another run's, and is
refused by name: `steps` with a schedule, because its rates at every step depend on how many steps there are.
"""

from __future__ import annotations

from collections.abc import Mapping

MAY_CHANGE = frozenset(
    ("steps", "learning_rate", "token_learning_rate", "text_learning_rate", "weight_decay", "spl_weight", "prior_weight", "preservation_weight")
)
Identity = Mapping[str, str]


def differing(saved: Identity, now: Identity) -> list[str]:
    """The entries of two identities that differ."""
    return [key for key in {**saved, **now} if saved.get(key) != now.get(key)]


def hindering(saved: Identity, now: Identity) -> list[str]:
    """The entries that differ and may not: with none, the run `saved` goes on as `now`."""
    different = differing(saved, now)
    fixed = {"steps"} if now.get("schedule", "constant") != "constant" else set()
    return [key for key in different if key not in MAY_CHANGE - fixed]


def clauses(saved: Identity, now: Identity, keys: list[str]) -> list[str]:
    """ "steps was 500, is 800" for each of `keys`."""
    return [f"{key} was {saved.get(key, 'not there')}, is {now.get(key, 'not there')}" for key in keys]


def change(saved: Identity, now: Identity, step: int) -> str:
    """What is changed after `step`, as the history says it; "" if nothing is."""
    different = clauses(saved, now, differing(saved, now))
    return f"after step {step}: {'; '.join(different)}" if different else ""


def check_left(saved: Identity, now: Identity, step: int) -> None:
    """ValueError if the changed run has no step left to do."""
    if differing(saved, now) and step >= int(now["steps"]):
        raise ValueError(
            f"steps is {now['steps']}, but this training has done {step} steps already, so nothing is left to train with what was changed "
            f"({'; '.join(clauses(saved, now, differing(saved, now)))}). Raise steps, set it back, or set resume to 'new run'."
        )
