"""`dev/build/locales.py`, which is a program and in no package, as the module `collect`."""

import importlib.util

from .host import ROOT

_spec = importlib.util.spec_from_file_location("kindred_locales", ROOT / "dev" / "build" / "locales.py")
collect = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(collect)
