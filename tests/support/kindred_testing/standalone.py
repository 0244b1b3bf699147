"""The one loader of the pack and of the host, also for benches, which have only this folder on their path; and scripts of `dev/` as modules."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "host" / "standalone"))

import kindred_standalone  # noqa: E402

__all__ = ["kindred_standalone", "script"]


@functools.cache
def script(place: str) -> ModuleType:
    """A file or package of the checkout under a name of its own: the demo's folder on `sys.path` would shadow the host's `server`."""
    path = ROOT / place
    folder = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(f"kindred_{path.stem}", path / "__init__.py" if folder else path, submodule_search_locations=folder)
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
