"""Settings that are declared once: type, default, limits, choices, help and group. Knows no torch and no ComfyUI.

A dataclass lists its settings with `setting(...)`. The node's inputs, the recipe reader, the checks and docs/settings.md all come from
these declarations. A declaration that is incomplete raises TypeError at import.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import Field, dataclass, field, fields
from typing import Any

GROUPS = {  # group -> its heading, in the order of the node Training Options and of docs/settings.md
    "main": "Main",
    "data": "Photos",
    "optimizer": "Optimizer",
    "losses": "Losses",
    "watching": "Watching",
    "keeping": "Keeping",
    "reach": "Where it acts",
    "token": "Token (methods with a token)",
    "adapter": "Adapter (methods `lora` and `lora + token`)",
}
AUTO = "auto"  # how people write the 0 of a setting that is `automatic`
_KEY = "kindred.setting"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    help          the tooltip: what it does, in a sentence or two
    least, most   limits of a number, both allowed
    step          of the number field on the node
    choices       what a text may be; () = any text
    automatic     0 stands for a value that the training finds; nodes, recipes and files write it as "auto"
    advanced      on the node Training Options instead of Train Concept
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
    automatic: bool = False
    advanced: bool = False
    optional: bool | None = None
    seed: bool = False
    lines: bool = False
    scorer: str = ""

    @property
    def type(self) -> type:
        return type(self.default)

    def read(self, value: Any) -> Any:
        """The value that a person or a file gave. "auto" or an empty text is 0 where the setting is automatic, and a text may be a number there.

        Raises ValueError if the text is neither. `check` does the rest.
        """
        if not self.automatic or isinstance(value, bool):
            return value
        if isinstance(value, str):
            if value.strip().lower() in ("", AUTO):
                return self.type(0)
            try:
                value = float(value)
            except ValueError:
                raise ValueError(f"{self.name} is {value!r}; expected {AUTO}, or a number such as {self.example}.") from None
        whole = self.type is int and isinstance(value, float) and value.is_integer()
        return int(value) if whole else value

    def shown(self, value: Any) -> Any:
        """`value` as people write it."""
        return AUTO if self.automatic and value == 0 else value

    @property
    def example(self) -> str:
        """A number that an automatic setting may be."""
        return "512" if self.type is int else "0.0001" if self.step is not None and self.step < 0.01 else "8"

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
        if self.automatic and value == 0:
            return
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
    if trial.automatic and trial.type not in (int, float):
        raise TypeError(f"The setting {help!r} is automatic, but is not a number.")
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
