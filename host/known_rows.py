"""The rows of tokens in the prompts of one sampling run."""

from __future__ import annotations

import logging

import torch

from . import text_rows
from .text_rows import KEY

log = logging.getLogger(__name__)


def of_guider(guider, tags: frozenset[str]) -> list[tuple[str, torch.Tensor]]:
    """The rows of the guider's conditions that belong to the tokens `tags`: those that are remembered, and those that the dicts name."""
    found: dict[bytes, tuple[str, torch.Tensor]] = {}
    changed = False
    for conditions in guider.conds.values():
        for condition in conditions or ():
            features = condition.get("cross_attn")
            if not torch.is_tensor(features) or features.ndim != 3:
                continue
            rows = [(tag, row) for tag, row in text_rows.find(features) if tag in tags]
            remembered = {tag for tag, _ in rows}
            for tag, positions in condition.get(KEY, {}).items():
                if tag in tags and tag not in remembered:
                    changed = changed or bool(features.any())
                    rows += [(tag, row) for at in positions if at < features.shape[1] for row in features[:, at]]
            for tag, row in rows:
                if row.any():  # Conditioning Zero Out
                    found.setdefault(row.detach().to("cpu", torch.float32).numpy().tobytes(), (tag, row))
    if changed:
        log.warning(
            "Kindred: a prompt was changed after it was encoded (by Conditioning Average, for example). The concept acts on the rows where its token stood in "
            "the first prompt; a token that only the other prompt names does not act."
        )
    return list(found.values())


def with_latest(known: list[tuple[str, torch.Tensor]], guider, tags: frozenset[str]) -> list[tuple[str, torch.Tensor]]:
    """`known` and the rows of the latest other prompts that name the same tokens."""
    features = next((one["cross_attn"] for some in guider.conds.values() for one in some or () if torch.is_tensor(one.get("cross_attn"))), None)
    if features is None:
        return known
    there = {row.detach().to("cpu", torch.float32).numpy().tobytes() for _, row in known}
    latest = [(tag, row) for tag, row in text_rows.latest(tags) if row.shape[-1] == features.shape[-1]]
    return [*known, *((tag, row.to(features)) for tag, row in latest if row.numpy().tobytes() not in there)]
