"""A custom node pack without nodes, for the demo's server: the miniature world's judge serves where Kindred asks for a CLIP model of the user's.

`files.prepare_judge` links this folder into the server's custom nodes and puts the folder that names the judge into models/evaluation. The pack knows
nothing of it: it calls `evaluation.scorers.add` from outside.
"""

import importlib
import sys
from pathlib import Path

from server import PromptServer  # pyright: ignore[reportAttributeAccessIssue]: the host's server, not the demo's

HERE = Path(__file__)
NODE_CLASS_MAPPINGS = {}


def load(_folder, _device) -> list:
    """The judge's two measures, for `evaluation.scorers`."""
    demo = str(HERE.resolve().parents[1])
    if demo not in sys.path:
        sys.path.append(demo)
    from base.fidelity import PromptFidelity, SubjectFidelity
    from base.judge import STORED, Judge

    judge = Judge.load(STORED)
    return [PromptFidelity(judge), SubjectFidelity(judge)]


async def _add(_app) -> None:
    """When the server starts, the host has loaded all packs, in whatever order, under their paths as names."""
    name = next(name for name in sys.modules if name.endswith("ComfyUI-Kindred"))
    importlib.import_module(f"{name}.evaluation.scorers").add("kindred-judge", "clip", load)


PromptServer.instance.app.on_startup.append(_add)
