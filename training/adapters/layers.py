"""Target layers: which layers of a network get an adapter, by the names that the host gives them."""

from __future__ import annotations

import logging
import re

import torch

from ...host import families
from .. import settings
from ..declare import implemented

log = logging.getLogger(__name__)

TARGETS: dict[str, tuple[str, ...]] = {  # the setting -> parts of the network (`host.families`)
    "cross-attention": ("cross-attention",),
    "text": ("text",),
    "attention": ("attention",),
    "attention + feed-forward": ("attention", "feed-forward"),
    "attention + feed-forward + convolutions": ("attention", "feed-forward", "convolutions"),
}
implemented(settings.TARGETS, TARGETS, "the setting targets")


def target_layers(network: torch.nn.Module, targets: str, patterns: dict[str, tuple[str, ...]] | None = None) -> dict[str, torch.nn.Module]:
    """Name -> layer, in the network's order: linear layers and 2D convolutions that `targets` (a key of TARGETS) means.

    patterns         part -> patterns for the ends of layer names; None = those of the network's family

    attention        queries, keys, values and outputs of self-, cross- and joint attention; in a text model, of its CLIP encoders
                     (T5 and language models stay frozen, as in most trainers: they are larger than all else together)
    feed-forward     the two (gated: three) matrices between the attentions
    convolutions     the U-Net's residual blocks, down- and upsampling, and the projections around its transformers (LyCORIS's LoCon)
    cross-attention  the U-Net's attn2; models with joint attention have none
    text             its keys and values alone, which can be limited to the token's rows
    Where a part matches nothing, the log says so; ValueError where all of it does.
    """
    if targets not in TARGETS:
        raise ValueError(f"targets is {targets!r}; expected one of {', '.join(map(repr, TARGETS))}.")
    weighted = {name: layer for name, layer in network.named_modules() if getattr(layer, "weight", None) is not None and layer.weight.ndim in (2, 4)}
    patterns = families.layer_patterns(network) if patterns is None else patterns
    found = {part: _named(weighted, patterns.get(part, ())) for part in TARGETS[targets]}
    chosen = set().union(*found.values())
    if not chosen:
        fitting = [repr(other) for other, parts in TARGETS.items() if any(_named(weighted, patterns.get(part, ())) for part in parts)]
        advice = (
            f"Choose {' or '.join(fitting)} in `targets`."
            if fitting
            else "Kindred does not know its layers by name, so it can learn a token on it, but no adapter."
        )
        raise ValueError(f"{type(network).__name__} has no layer that {targets!r} means. {advice}")
    for part in (part for part, names in found.items() if not names):
        log.warning("Kindred: %s has no %s layers that are known by name; the rest of %r is trained.", type(network).__name__, part, targets)
    return {name: layer for name, layer in weighted.items() if name in chosen}


def _named(layers, patterns: tuple[str, ...]) -> set[str]:
    """The names among `layers` that end in one of the patterns."""
    if not patterns:
        return set()
    pattern = re.compile(r"(?:^|\.)(?:" + "|".join(patterns) + ")$")
    return {name for name in layers if pattern.search(name)}
