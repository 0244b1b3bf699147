"""Subject fidelity and prompt fidelity of generated pictures, for any scorer (CLIP, DINO, BLIP-2, the miniature world's judge).

The protocol is DreamBooth's (Ruiz et al. 2023, section 4.1): subject fidelity is the mean cosine between a picture and every reference,
prompt fidelity the agreement of picture and prompt with V* replaced by the class word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from .bootstrap import Interval, mean


class Scorer(Protocol):
    """One measure. ``images`` are float [B, 3, H, W] in [0, 1]; every method returns one score a picture, [B], higher is better."""

    name: str
    against: str  # what a picture is compared with: "prompt" or "references"

    def __call__(self, images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor: ...


@dataclass
class Report:
    """Scores by measure, one list entry a picture, and their intervals."""

    scores: dict[str, list[float]]
    groups: list[object] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)  # one a picture, as written

    def intervals(self) -> dict[str, Interval]:
        return {name: mean(values, self.groups or None) for name, values in self.scores.items()}

    def table(self) -> str:
        """Markdown: measure, mean, 95% interval, number of pictures."""
        rows = [f"| {name} | {i.value:.3f} | {i.low:.3f} to {i.high:.3f} | {i.count} |" for name, i in self.intervals().items()]
        return "\n".join(["| measure | mean | 95% interval | images |", "|---|---|---|---|", *rows])

    def text(self) -> str:
        """Plain text for a preview: the intervals, then each prompt's means where there are several."""
        intervals = self.intervals()
        width = max(18, *(len(name) + 2 for name in intervals))
        lines = [f"{'measure':<{width}}{'mean':>8}   95% interval        images"]
        lines += [f"{name:<{width}}{i.value:8.3f}   {i.low:6.3f} to {i.high:6.3f}{i.count:12d}" for name, i in intervals.items()]
        prompts = list(dict.fromkeys(self.prompts))
        if len(prompts) > 1:
            lines += ["", "".join(f"{name:>{len(name) + 3}}" for name in self.scores) + f"{'images':>9}   prompt"]
            for prompt in prompts:
                at = [i for i, one in enumerate(self.prompts) if one == prompt]
                means = [sum(values[i] for i in at) / len(at) for values in self.scores.values()]
                cells = "".join(f"{value:>{len(name) + 3}.3f}" for name, value in zip(self.scores, means, strict=True))
                lines.append(f"{cells}{len(at):9d}   {prompt}")
        return "\n".join(lines)


def mean_cosine(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean cosine of each feature row [B, D] with all reference rows [R, D], [B]. Raises ValueError if the widths differ."""
    if images.shape[-1] != references.shape[-1]:
        raise ValueError(f"features: the images have {images.shape[-1]} values, the references {references.shape[-1]}; both must come from one model.")
    return (torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(references.to(images.device), dim=-1).T).mean(-1)


def evaluate(
    images: torch.Tensor, references: torch.Tensor, prompts: Sequence[str], scorers: Sequence[Scorer], groups: Sequence[object] = (), batch: int = 32
) -> Report:
    """Scores ``images`` [B, 3, H, W] against ``references`` [R, 3, H', W'] and one prompt each (or one for all).

    ``groups`` labels images that are not independent (one prompt, one subject), for the intervals. Raises ValueError if pictures and
    prompts differ in number, or values are outside [0, 1].
    """
    prompts = list(prompts) * (len(images) if len(prompts) == 1 else 1)
    if len(prompts) != len(images):
        raise ValueError(f"prompts: found {len(prompts)} for {len(images)} images; write one for each, or one for all.")
    if not len(images) or not len(references):
        raise ValueError(f"found {len(images)} images and {len(references)} references, expected at least one of both.")
    for what, x in (("images", images), ("references", references)):
        if x.ndim != 4 or x.shape[1] != 3 or float(x.amin()) < -1e-3 or float(x.amax()) > 1 + 1e-3:
            raise ValueError(
                f"{what}: found shape {tuple(x.shape)} with values {float(x.amin()):.3g} to {float(x.amax()):.3g}, expected [count, 3, H, W] in [0, 1]."
            )
    scores: dict[str, list[float]] = {}
    for scorer in scorers:
        parts = [scorer(images[at : at + batch], references, prompts[at : at + batch]) for at in range(0, len(images), batch)]
        scores[scorer.name] = torch.cat(parts).float().tolist()
    return Report(scores, list(groups))
