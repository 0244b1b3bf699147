"""Settings that are declared once: type, default, limits, choices, help and group. Knows no torch and no ComfyUI.

A dataclass lists its settings with `setting(...)`. The node's inputs, the recipe reader, the checks and docs/settings.md all come from
these declarations. A declaration that is incomplete raises TypeError at import.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import Field, dataclass, field, fields
from typing import Any

GROUPS = {  # group -> its heading in the documentation
    "main": "Main",
    "adapter": "Adapter (methods `lora` and `lora + token`)",
    "token": "Token (methods with a token)",
    "data": "Photos",
    "optimizer": "Optimizer",
    "losses": "Losses",
    "watching": "Watching",
    "keeping": "Keeping",
    "reach": "Where it acts",  # the last: saved workflows keep values by position
}
_KEY = "kindred.setting"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    help          the tooltip: what it does, in a sentence or two
    least, most   limits of a number, both allowed
    step          of the number field on the node
    choices       what a text may be; () = any text
    advanced      shown only when the artist asks for all inputs
    optional      may be left out of a workflow in API form; None = like `advanced`
    seed          the node offers to count it up after each run
    lines         a text with one entry a line
    scorer        the text is "none" or the folder of a scoring model of this kind in models/evaluation (a key of `evaluation.scorers.MODELS`)
    """

    name: str
    default: Any
    help: str
    group: str
    least: float | None = None
    most: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False
    optional: bool | None = None
    seed: bool = False
    lines: bool = False
    scorer: str = ""

    @property
    def type(self) -> type:
        return type(self.default)

    def check(self, value: Any) -> None:
        """ValueError, beginning with the setting's name, where `value` cannot be."""
        allowed = (int, float) if self.type is float else (self.type,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.type is not bool):
            raise ValueError(f"{self.name} is {value!r}; expected {_WORDS[self.type]}.")
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name} is {value!r}; expected one of {', '.join(map(repr, self.choices))}.")
        if self.least is None or self.most is None:
            return
        if not math.isfinite(value):
            raise ValueError(f"{self.name} is {value}; expected a number.")
        if value < self.least:
            raise ValueError(f"{self.name} is {value}; at least {self.least:g} is expected.")
        if value > self.most:
            raise ValueError(f"{self.name} is {value}; at most {self.most if self.type is int else format(self.most, 'g')} is expected.")


def setting(default: Any, help: str, group: str, **more) -> Any:
    """A dataclass field that declares a setting; `more` are the other fields of `Setting`."""
    trial = Setting("?", default, help, group, **more)
    if trial.type not in _WORDS or group not in GROUPS or not help:
        raise TypeError(f"A setting of group {group!r} with default {default!r} is not declared whole.")
    if trial.type in (int, float) and None in (trial.least, trial.most):
        raise TypeError(f"The setting {help!r} is a number, but has no limits.")
    trial.check(default)
    return field(default=default, metadata={_KEY: {"help": help, "group": group, **more}})


def declared(settings: type) -> list[Setting]:
    """The settings of a dataclass in order. TypeError where a field was not declared by `setting`."""
    return [_declared(settings, one) for one in fields(settings)]


def check(settings: Any) -> None:
    """ValueError for the first value of the dataclass `settings` that is out of its declaration."""
    for one in declared(type(settings)):
        one.check(getattr(settings, one.name))


def implemented(choices: Collection[str], table: Collection[str], what: str) -> None:
    """RuntimeError at import where a register's choices and the table that carries them out have come apart."""
    if missing := set(choices) ^ set(table):
        raise RuntimeError(f"{what}: {', '.join(sorted(missing))} is offered but not implemented, or implemented but not offered.")


def _declared(owner: type, one: Field) -> Setting:
    if _KEY not in one.metadata:
        raise TypeError(f"{owner.__name__}.{one.name} is not declared by setting(...).")
    return Setting(one.name, one.default, **one.metadata[_KEY])
