"""A negative prompt that is encoded by the text encoder at theta_w, whatever omega the guidance that it reaches has.

Steering Guidance (2025) blends all tuned weights, the text encoder's among them: the null prompt of the weak model is encoded at
omega * tuned + (1 - omega) * base. Only the sampler knows omega. So the CONDITIONING says in its dict what it was made of, and guidance encodes it anew.
Everywhere else it is the tuned encoder's, which is plain CFG.
"""

from __future__ import annotations

import itertools
import logging
import math

import torch

from ..host import prompt, sampling, text_weights
from ..host.types import Clip, Conditioning
from .schedule import Schedule, percent_of

log = logging.getLogger(__name__)
KEY = "kindred_null_prompt"  # in a CONDITIONING's dict
MOST = 16  # encodings of a run whose omega moves


class NullPrompt:
    """`text`, and the text encoder after and before tuning."""

    def __init__(self, clip: Clip, base_clip: Clip, text: str):
        self.clip, self.base_clip, self.tokens = clip, base_clip, clip.tokenize(text)
        self.tuned = bool(text_weights.changed(clip, base_clip))
        self._encoded: dict[float, Conditioning] = {}

    def __deepcopy__(self, memo):
        return self  # a node that copies a conditioning must not copy text encoders

    def at(self, omega: float) -> Conditioning:
        """The prompt, encoded at omega * tuned + (1 - omega) * base."""
        if omega not in self._encoded:
            if len(self._encoded) >= MOST:
                self._encoded.clear()
            with torch.inference_mode():
                self._encoded[omega] = prompt.encode(text_weights.between(self.clip, self.base_clip, omega), self.tokens)
        return self._encoded[omega]

    def conditioning(self) -> Conditioning:
        """The prompt at omega 1, which says what it was made of."""
        return [[features, {**extras, KEY: self} if self.tuned else dict(extras)] for features, extras in self.at(1.0)]


def encode(clip: Clip, base_clip: Clip, text: str) -> Conditioning:
    """The CONDITIONING of `text` for the negative input of guided samplers. Raises ValueError for text encoders of two families."""
    return NullPrompt(clip, base_clip, text).conditioning()


def encode_again(guider, sides, schedule: Schedule, sigmas: torch.Tensor) -> None:
    """Encode the null prompts among the guider's conditions of the lists `sides` at the omega of `schedule`; called before a run of these `sigmas`.

    If omega moves, each becomes up to `MOST` conditions, one after the other over the steps.
    """
    for side in sides:
        if any(KEY in condition for condition in guider.conds.get(side) or ()):
            guider.conds[side] = [piece for condition in guider.conds[side] for piece in _encoded(condition, schedule, sigmas, guider)]


def _encoded(condition: dict, schedule: Schedule, sigmas: torch.Tensor, guider) -> list[dict]:
    null: NullPrompt | None = condition.get(KEY)
    if null is None:
        return [condition]
    if not any(torch.equal(features, condition["cross_attn"]) for features, _ in null.at(1.0)):
        log.warning("Kindred: a negative prompt was changed after it was encoded, so it stays as the tuned text encoder encoded it, whatever omega.")
        return [condition]
    if schedule.constant:
        return [_with(condition, one) for one in null.at(schedule.omega)]
    pieces = []
    for omega, start, end in _pieces(schedule, sigmas, sampling.percent_to_sigma_before(guider)):
        start, end = max(start, condition.get("start_percent", 0.0)), min(end, condition.get("end_percent", 1.0))
        if start < end:
            pieces += [{**_with(condition, one), "start_percent": start, "end_percent": end} for one in null.at(omega)]
    return pieces


def _with(condition: dict, encoded: list) -> dict:
    features, extras = encoded
    return {**condition, **{key: value for key, value in extras.items() if key in condition}, "cross_attn": features}


def _pieces(schedule: Schedule, sigmas: torch.Tensor, percent_to_sigma) -> list[tuple[float, float, float]]:
    """(omega, start, end) in percent: neighbouring steps share one if there are more than `MOST`. Ends lie between two steps' sigmas."""
    levels = [float(sigma) for sigma in sigmas[:-1]]
    share = math.ceil(len(levels) / MOST)
    groups = [levels[at : at + share] for at in range(0, len(levels), share)]
    # neither a step's own sigma nor the middle that samplers of second order evaluate, where two pieces would both act
    cuts = [0.0, *(percent_of(one[-1] ** 0.55 * max(other[0], 1e-9) ** 0.45, percent_to_sigma) for one, other in itertools.pairwise(groups)), 1.0]
    omegas = [schedule.at(sum(percent_of(level, percent_to_sigma) for level in group) / len(group)) for group in groups]
    return list(zip(omegas, cuts[:-1], cuts[1:], strict=True))
