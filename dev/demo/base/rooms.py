"""The pack's own rooms for scripts that run outside the host: loaded by path under a name of their own.

The pack's root must never stand on ``sys.path``: the host has a top-level ``nodes`` too.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
PACK = "kindred_rooms"


def evaluation(*names: str) -> dict[str, ModuleType]:
    """Modules of the room ``evaluation`` by name, in a package that has the pack's other rooms beside it, but not its ``__init__``."""
    if PACK not in sys.modules:
        sys.modules[PACK] = package = ModuleType(PACK)
        package.__path__ = [str(ROOT)]
    return {name: importlib.import_module(f"{PACK}.evaluation.{name}") for name in names}
