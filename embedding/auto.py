"""Automatic alpha: the smallest rotation that keeps the prompt's context. Pure torch.

TEA leaves alpha to the user and names a search with a stop condition as future work (appendix D). This is such a search. With

    e_P, e_C     sentence features (the encoder's output at the end token) of the concept's and of the class prompt
    e_P0, e_C0   those of the bare prompts "a photo of a <v1> dog" and "a photo of a dog"
    f            a feature scaled to unit length, so that only directions count

the context moves the class prompt by g = f_C - f_C0. How much of that move survives next to V* is

    kept(alpha) = < f_P(alpha) - f_P0(alpha), g > / < g, g >        f_P(alpha) = e_P rotated toward e_C by alpha, f_P0 likewise

1 is the value of the class prompt itself; under semantic collapse, where a long prompt reads like the bare one, it falls toward 0.
`choose` bisects for the smallest alpha with kept(alpha) >= target. It sees sentence features only: neither the subject's likeness
nor the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .slerp import adjust

TOLERANCE = 1e-3  # of alpha
_SAME = 1e-6  # |g|^2 below which the prompt has no context


@dataclass(frozen=True)
class Features:
    """Sentence features of the four prompts, [chunks, width] each, for one encoder."""

    prompt: torch.Tensor
    class_prompt: torch.Tensor
    bare: torch.Tensor
    class_bare: torch.Tensor


@dataclass(frozen=True)
class Choice:
    """alpha, and the share of the context that is kept with it and without adjustment (None = the prompt has no context)."""

    alpha: float
    kept: float | None
    kept_before: float | None


def kept(encoders: list[Features], alpha: float) -> float | None:
    """The share of the context that is kept at `alpha`, over all encoders; None if there is no context."""
    along, length = 0.0, 0.0
    for each in encoders:
        class_unit, class_bare = _unit(each.class_prompt), _unit(each.class_bare)
        g = class_unit - class_bare
        move = _unit(adjust(each.prompt.float(), each.class_prompt.float(), alpha, 0.0)) - _unit(adjust(each.bare.float(), each.class_bare.float(), alpha, 0.0))
        along += float((move * g).sum())
        length += float((g * g).sum())
    return along / length if length > _SAME * len(encoders) else None


def choose(encoders: list[Features], target: float) -> Choice:
    """Bisect for the smallest alpha in [0, 1] whose adjusted prompt keeps `target` (0..1] of the context. At alpha 1 all of it is kept."""
    before = kept(encoders, 0.0)
    if before is None or before >= target:
        return Choice(0.0, before, before)
    low, high = 0.0, 1.0
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        share = kept(encoders, middle)
        low, high = (low, middle) if share is not None and share >= target else (middle, high)
    return Choice(high, kept(encoders, high), before)


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Mean over the chunks of [chunks, width], at unit length."""
    features = torch.nn.functional.normalize(features.to(torch.float32), dim=-1).mean(dim=0)
    return torch.nn.functional.normalize(features, dim=-1)
