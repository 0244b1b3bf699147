"""Writes docs/settings.md from the registers: every setting of a training, the methods, the adapter kinds.

    python dev/build/settings.py

A test holds the page against the registers.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "settings.md"


def page(pack: str) -> str:
    """The page, from the pack that is importable as `pack`."""
    declare, methods, kinds, settings = (importlib.import_module(f"{pack}.training.{name}") for name in ("declare", "methods", "adapters.kinds", "settings"))
    lines = [
        "# Settings of a training",
        "",
        "Made by `python dev/build/settings.py` from `training/settings.py`, `training/methods.py` and `training/adapters/kinds.py`.",
        "The inputs of Train Concept (**bold**) and of Training Options (all others), and the `[train]`, `[preview]` and `[save]` tables of a recipe,",
        "come from the same declarations. Where `auto` is a choice, 0 means the same.",
        "",
        "## Methods",
        "",
        "| method | what is learned | usual rate: network | token |",
        "|---|---|---|---|",
    ]
    for name, method in methods.METHODS.items():
        network = "the adapter's" if method.rate is None else _rate(method.rate)
        lines.append(f"| `{name}` | {method.what} | {network} | {_rate(method.token_rate)} |")
    lines += ["", "## Adapters", "", "| adapter | what it learns | `rank` | `alpha` | usual rate |", "|---|---|---|---|---|"]
    for name, kind in kinds.KINDS.items():
        lines.append(f"| `{name}` | {kind.what} | {kind.rank or 'not used'} | {kind.alpha or 'not used'} | {_rate(kind.rate)} |")
    for group, heading in declare.GROUPS.items():
        lines += ["", f"## {heading}", "", "| setting | default | may be | what it does |", "|---|---|---|---|"]
        lines += [f"| {_name(one)} | {_value(one.shown(one.default))} | {_range(one)} | {one.help} |" for one in settings.SETTINGS if one.group == group]
    return "\n".join(lines) + "\n"


def _rate(rate: float) -> str:
    return f"{rate:g}" if rate else "–"


def _name(one) -> str:
    return f"`{one.name}`" if one.advanced else f"**`{one.name}`**"


def _value(value) -> str:
    return {True: "on", False: "off", "": "empty"}.get(value, f"`{value}`") if isinstance(value, (bool, str)) else f"{value:g}"


def _range(one) -> str:
    if one.choices:
        return ", ".join(f"`{choice}`" for choice in one.choices)
    if one.type is bool:
        return "on, off"
    if one.type is str:
        return "any text"
    return ("`auto`, " if one.automatic else "") + _between(one)


def _between(one) -> str:
    return f"{one.least} to {one.most}" if one.type is int else f"{one.least:g} to {one.most:g}"


if __name__ == "__main__":
    sys.path.append(str(ROOT / "host" / "standalone"))
    import kindred_standalone

    PAGE.write_text(page(kindred_standalone.load().__name__), "utf-8")
