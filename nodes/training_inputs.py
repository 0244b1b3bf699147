"""The inputs of Train Concept and Training Options, made from the settings' declarations (`training/settings.py`)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..evaluation import scorers
from ..training.declare import AUTO, GROUPS, Setting
from ..training.methods import METHODS
from ..training.settings import SETTINGS

_METHOD = next(setting for setting in SETTINGS if setting.name == "method")


def make_input(setting: Setting):
    """The node input of one setting. The page reads the group from it, for the titles on Training Options."""
    optional = setting.advanced if setting.optional is None else setting.optional
    given = {"default": setting.default, "tooltip": setting.help, "optional": optional, "extra_dict": {"group": setting.group}}
    if setting.automatic:  # a text that is a number or "auto"; a link may bring a number
        text = io.String.Input(setting.name, **{**given, "default": AUTO})
        return io.MultiType.Input(text, types=[io.Float, io.Int])
    if setting.scorer:
        return io.Combo.Input(setting.name, options=[setting.default, *scorers.folders(setting.scorer)], **given)
    if setting.choices:
        return io.Combo.Input(setting.name, options=list(setting.choices), **given)
    if setting.type is bool:
        return io.Boolean.Input(setting.name, **given)
    if setting.type is str:
        return io.String.Input(setting.name, multiline=setting.lines, **given)
    limits: dict[str, Any] = {"min": setting.type(setting.least), "max": setting.type(setting.most), "step": setting.step}
    if setting.type is int:
        limits["control_after_generate"] = io.ControlAfterGenerate.fixed if setting.seed else None
        return io.Int.Input(setting.name, **given, **limits)
    limits["round"] = 1e-8 if setting.step is not None and setting.step < 1e-4 else None
    return io.Float.Input(setting.name, **given, **limits)


def train_inputs() -> list:
    """The fields of Train Concept: the method, which brings those that only such methods have, and the main settings."""
    shown = [setting for setting in SETTINGS if not setting.advanced and setting is not _METHOD]
    own = {group for method in METHODS.values() for group in method.groups}
    options = [io.DynamicCombo.Option(name, [make_input(setting) for setting in shown if setting.group in method.groups]) for name, method in METHODS.items()]
    method = io.DynamicCombo.Input(_METHOD.name, options=options, tooltip=_METHOD.help)
    return [method, *(make_input(setting) for setting in shown if setting.group not in own)]


def option_inputs() -> list:
    """The fields of Training Options: all others, group by group."""
    return [make_input(setting) for group in GROUPS for setting in SETTINGS if setting.advanced and setting.group == group]


def collect(method: dict, given: dict, options: dict | None) -> dict:
    """All settings by name, from Train Concept's inputs and what Training Options gave.

    Prompts in API form of earlier versions have the inputs of Training Options on Train Concept, some of them as "method.NAME".
    Raises ValueError for an input that is no setting, and for a setting that both nodes give.
    """
    own = {**method, **{name.removeprefix("method."): value for name, value in given.items()}}
    own = {name: value for name, value in own.items() if value is not None}  # an optional input that is left out is None
    if unknown := sorted(own.keys() - {setting.name for setting in SETTINGS}):
        raise ValueError(f"Train Concept has no input {', '.join(map(repr, unknown))}. Remove it, or correct its name.")
    if twice := sorted(own.keys() & (options or {}).keys()):
        raise ValueError(
            f"{', '.join(twice)}: set on Train Concept and on Training Options. Remove the input from Train Concept, or its link to Training Options."
        )
    return {**own, **(options or {})}
