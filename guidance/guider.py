"""Guiders: Personalization Guidance, and its relatives for comparison.

D = the model's prediction of the image, theta' tuned, theta base, c prompt, c0 the same prompt without the subject, phi null prompt,
theta_w = omega theta' + (1 - omega) theta, t = time from 1 (noise) to 0 (image).

    personalization         D_theta_w(phi) + cfg (D_theta'(c) - D_theta_w(phi))                     Steering Guidance 2025, equations 7 and 8
    autoguidance            D_theta'(phi) + cfg (D_theta'(c) - D_theta'(phi)) + s (D_theta'(c) - D_theta_w(c))          its baseline CFG + AG
    subject-agnostic        D_theta'(phi) + cfg (D_bar - D_theta'(phi)),  D_bar = (1 + w) D_theta'(c) - w D_theta'(c0),
                            w = -1 while t > T, then w = r in [-1, 0]                        SAG as published: Chan et al., CVPR 2024
    CFG + subject-agnostic  D_theta'(phi) + cfg (D_theta'(c) - D_theta'(phi)) + s (D_theta'(c0) - D_theta'(c))       baseline of Steering Guidance

The paper's AG of equation 6 with scale lambda is cfg 1 and s = lambda - 1. All predictions of a step are made in one batch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..host import sampling
from ..host.types import Conditioning, Model
from . import relatives
from .modes import DEFAULT, MODES
from .routing import attach, detach
from .schedule import Schedule
from .weak_model import WeakModel

log = logging.getLogger(__name__)


def personalize(model: Model, base_model: Model, schedule: Schedule) -> Model:
    """A clone of `model` whose negative side is predicted by the weights between `base_model` and `model`: any sampler and guider may use it.

    At omega 1 from start to end that is plain CFG, and `model` itself comes back, once the pair is known to fit. A model that is
    personalized already gets the new guidance in place of the old.
    """
    weak = WeakModel(model, base_model, schedule)
    if schedule.is_cfg:
        log.info("Personalization Guidance at omega 1 is plain CFG: nothing to do.")
        return detach(model)
    return attach(model, weak)


class PersonalizationGuider(sampling.CFGGuider):
    """The host's CFG guider on a personalized model."""

    def __init__(self, model: Model, base_model: Model, schedule: Schedule):
        super().__init__(personalize(model, base_model, schedule))


@dataclass(frozen=True)
class Inputs:
    """What a mode makes its guider of; MODEL, CONDITIONING and numbers as the node has them."""

    model: Model
    base_model: Model
    positive: Conditioning
    negative: Conditioning
    schedule: Schedule
    subject_agnostic: Conditioning | None
    scale: float
    agnostic_until: float
    agnostic_weight: float


def _personalization(given: Inputs):
    guider = PersonalizationGuider(given.model, given.base_model, given.schedule)
    guider.set_conds(given.positive, given.negative)
    return guider


def _autoguidance(given: Inputs):
    weak = attach(given.model, WeakModel(given.model, given.base_model, given.schedule), sides=(relatives.THIRD,))
    return _third(given, weak, given.positive, given.scale)


def _subject_agnostic(given: Inputs):
    conditions = given.positive, given.negative, _without_subject(given)
    return relatives.SubjectAgnosticGuider(given.model, *conditions, given.agnostic_until, given.agnostic_weight)


def _cfg_and_subject_agnostic(given: Inputs):
    return _third(given, given.model, _without_subject(given), -given.scale)


def _without_subject(given: Inputs) -> Conditioning:
    if given.subject_agnostic is None:
        raise ValueError(
            "`subject_agnostic` is not connected: subject-agnostic guidance needs the prompt encoded without the subject's token, "
            "for example with its class word instead."
        )
    return given.subject_agnostic


def _third(given: Inputs, model: Model, third: Conditioning, scale: float):
    if not math.isfinite(scale):
        raise ValueError(f"`scale` is {given.scale}; expected a finite number.")
    return relatives.ThirdPredictionGuider(model, given.positive, given.negative, third, scale)


MAKERS: dict[str, Callable[[Inputs], Any]] = {
    "personalization": _personalization,
    "autoguidance": _autoguidance,
    "subject-agnostic": _subject_agnostic,
    "CFG + subject-agnostic": _cfg_and_subject_agnostic,
}
if MAKERS.keys() != MODES.keys():
    raise RuntimeError(f"guidance modes that are offered but not made, or made but not offered: {MAKERS.keys() ^ MODES.keys()}")


def make_guider(
    model: Model,
    base_model: Model,
    positive: Conditioning,
    negative: Conditioning | None,
    cfg: float,
    schedule: Schedule,
    mode: str = DEFAULT,
    subject_agnostic: Conditioning | None = None,
    scale: float = 1.0,
    agnostic_until: float = relatives.UNTIL,
    agnostic_weight: float = relatives.WEIGHT,
):
    """The guider of `mode` with its conditionings set. Raises ValueError, one sentence, if an input is missing or does not fit.

    subject_agnostic  c0, for the modes that are named after it;  scale: s, for the modes that make three predictions
    agnostic_until    T, and agnostic_weight: r, of the mode "subject-agnostic"
    """
    if mode not in MAKERS:
        raise ValueError(f"`mode` is {mode!r}; expected one of {', '.join(MAKERS)}.")
    if not math.isfinite(cfg):
        raise ValueError(f"`cfg` is {cfg}; expected a finite number.")
    if negative is None:
        raise ValueError(
            "`negative` is not connected, and this guider encodes nothing by itself: connect an empty prompt. If the text encoder was tuned, too, "
            "take it from Negative Prompt (Personalization Guidance)."
        )
    guider = MAKERS[mode](Inputs(model, base_model, positive, negative, schedule, subject_agnostic, scale, agnostic_until, agnostic_weight))
    guider.set_cfg(cfg)
    return guider
