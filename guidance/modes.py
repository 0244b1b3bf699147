"""The register of guidance modes: node, checks and guider read it. Knows no torch.

To add a mode, add its row here and its function in `guider.MAKERS`. docs/adding.md walks through it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """One way to use a third prediction, or the weak model in place of the negative one.

    what         the clause of the tooltip
    predictions  of a step
    """

    what: str
    predictions: int


MODES: dict[str, Mode] = {
    "personalization": Mode("the paper's method", 2),
    "autoguidance": Mode("CFG, and away from the weak model on the SAME prompt", 3),
    "subject-agnostic": Mode("CFG, early on the prompt without the subject, as SAG is published; omega is not used", 2),
    "CFG + subject-agnostic": Mode("CFG, and toward the prompt without the subject, as Steering Guidance compares it; omega is not used", 3),
}
DEFAULT = "personalization"


def tooltip() -> str:
    """What the modes do, for the node."""
    return " ".join(f"{name}: {mode.what} ({mode.predictions} predictions a step)." for name, mode in MODES.items())
