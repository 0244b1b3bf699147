"""The inputs of Train Concept, made from the settings' declarations (`training/settings.py`)."""

from typing import Any

from comfy_api.latest import io

from ..evaluation import scorers
from ..training.declare import GROUPS, Setting
from ..training.methods import METHODS
from ..training.settings import SETTINGS


def make_input(setting: Setting):
    """The node input of one setting."""
    optional = setting.advanced if setting.optional is None else setting.optional
    given = {"default": setting.default, "tooltip": setting.help, "optional": optional, "advanced": setting.advanced or None}
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


LATER = ("heldout_every", "preview_clip", "preview_dino", "stop_after", "keep_steps")  # they came when files had the others' values by position


def group(name: str) -> list:
    """The inputs of one group, without the method, which is a choice with inputs of its own."""
    return [make_input(setting) for setting in SETTINGS if setting.group == name and setting.name not in ("method", *LATER)]


def method():
    """What is learned; each method brings the inputs of its own groups."""
    (setting,) = (setting for setting in SETTINGS if setting.name == "method")
    options = [io.DynamicCombo.Option(name, [one for part in how.groups for one in group(part)]) for name, how in METHODS.items()]
    return io.DynamicCombo.Input(setting.name, options=options, tooltip=setting.help)


def inputs() -> list:
    """All of them, in the order of the node. Saved workflows keep values by position: a new setting goes to the end of its node."""
    own = {part for how in METHODS.values() for part in how.groups}
    later = [make_input(setting) for setting in SETTINGS if setting.name in LATER]
    return [method(), *(one for name in GROUPS if name not in own for one in group(name)), *later]
