"""Text report of a drift measurement: a summary first, then every number."""

from __future__ import annotations

import torch

from .measure import Drift

_COLUMNS = (("L2", "l2"), ("Hausdorff", "hausdorff"), ("Mahalanobis", "mahalanobis"), ("KL", "kl"))


def report(drift: Drift) -> str:
    """Plain text for a preview node."""
    first, others = drift.states[0], len(drift.adjectives)
    lines = [
        f"{drift.token} against {drift.class_word}, {drift.contexts} scenes, alpha {drift.alpha:g}, beta {drift.beta:g}",
        f"{max(0.0, first.kept):.0%} of a scene survives next to {drift.token}; by distance in meaning from {drift.class_word} it is at place {first.rank} of {others + 1}.",
        "",
        "token                   length   percentile   cosine      adjusted: length   cosine",
    ]
    for index, vector in enumerate(drift.vectors):
        words = drift.vocabulary[vector.encoder]
        above = (words < vector.norm).double().mean().item()
        name = f"{vector.encoder} vector {index + 1}"
        lines.append(f"{name:<22}{vector.norm:8.3f}{above:12.1%}{vector.cosine:9.3f}{vector.adjusted_norm:22.3f}{vector.adjusted_cosine:9.3f}")
    for key in dict.fromkeys(vector.encoder for vector in drift.vectors):
        words = drift.vocabulary[key]
        quarter, middle, three = torch.quantile(words.double(), torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
        lines.append(f"{key}: {drift.class_word} {drift.class_norms[key]:.3f}; half of all words {quarter:.3f} to {three:.3f}, median {middle:.3f}")
    lines += ["", f"{'prompts':<22}{'scene kept':>12}{'place':>8}" + "".join(f"{label:>14}" for label, _ in _COLUMNS)]
    for state in drift.states:
        head = f"{state.name:<22}{state.kept:12.1%}{state.rank:8d}"
        lines.append(head + "".join(f"{getattr(state.inter, name):14.4g}" for _, name in _COLUMNS) + "   from the class")
        lines.append(" " * len(head) + "".join(f"{getattr(state.intra, name):14.4g}" for _, name in _COLUMNS) + "   within")
    lines.append(f"{drift.class_word:<22}" + " " * 20 + "".join(f"{getattr(drift.class_intra, name):14.4g}" for _, name in _COLUMNS) + "   within")
    return "\n".join(lines)
