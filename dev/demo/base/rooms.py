"""The pack's own modules for the demo and the world's judge: `load("evaluation.bootstrap")`, by the pack's one loader."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "host" / "standalone"))

from kindred_standalone import load, start_host

__all__ = ["load", "start_host"]
