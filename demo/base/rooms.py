"""The pack's own rooms for scripts that run outside the host: loaded by path under a name of their own.

The pack's root must never stand on ``sys.path``: the host has a top-level ``nodes`` too.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def evaluation(*names: str) -> dict[str, ModuleType]:
    """Modules of the room ``evaluation`` by name."""
    if "kindred_evaluation" not in sys.modules:
        place = ROOT / "evaluation" / "__init__.py"
        spec = importlib.util.spec_from_file_location("kindred_evaluation", place, submodule_search_locations=[str(place.parent)])
        sys.modules["kindred_evaluation"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return {name: importlib.import_module(f"kindred_evaluation.{name}") for name in names}
