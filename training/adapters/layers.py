"""Target layers: which layers of a network get an adapter, by the names that the host gives them."""

from __future__ import annotations

import logging
import re

import torch

from .. import settings
from ..declare import implemented

log = logging.getLogger(__name__)

_CROSS_ATTENTION = (
    r"attn2\.(to_[qkv]|to_out\.0)",  # U-Net
    r"cross_attn\.(q_linear|kv_linear|proj|[qkvo])",  # PixArt, Wan
    r"attn2\.(q|kv|out)_proj",  # HunyuanDiT
)
_ATTENTION = (
    *_CROSS_ATTENTION,
    r"attn1\.(to_[qkv]|to_out\.0)",  # U-Net
    r"attn2?\.(qkv|proj)",  # SD 3, PixArt
    r"attn1\.(Wqkv|out_proj)",  # HunyuanDiT
    r"(img|txt)_attn\.(qkv|proj)",  # Flux, Chroma, HunyuanVideo
    r"single_blocks\.\d+\.linear[12]",  # the same: one matrix for attention and feed-forward
    r"attn\.w[12][qkvo]",  # AuraFlow
    r"attention\.(qkv|out)",  # Lumina 2, Z-Image
    r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",  # Qwen-Image
    r"self_attn\.[qkvo]",  # Wan
    r"self_attn\.(q|k|v|out)_proj",  # CLIP
)
_FEED_FORWARD = (
    r"ff\.net\.(0\.proj|2)",  # U-Net
    r"mlp\.fc[12]",  # SD 3, PixArt, HunyuanDiT, CLIP
    r"(img|txt)_mlp\.(0|2)",  # Flux, Chroma, HunyuanVideo
    r"mlp[CX]?\.c_(fc1|fc2|proj)",  # AuraFlow
    r"feed_forward\.w[123]",  # Lumina 2, Z-Image
    r"(img|txt)_mlp\.net\.(0\.proj|2)",  # Qwen-Image
    r"ffn\.[02]",  # Wan
)
_CONVOLUTIONS = (r"(input_blocks|middle_block|output_blocks)\..*(in_layers\.2|out_layers\.3|skip_connection|op|conv|proj_in|proj_out)",)

TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "cross-attention": {"cross-attention": _CROSS_ATTENTION},
    "attention": {"attention": _ATTENTION},
    "attention + feed-forward": {"attention": _ATTENTION, "feed-forward": _FEED_FORWARD},
    "attention + feed-forward + convolutions": {"attention": _ATTENTION, "feed-forward": _FEED_FORWARD, "convolutions": _CONVOLUTIONS},
}
implemented(settings.TARGETS, TARGETS, "the setting targets")


def target_layers(network: torch.nn.Module, targets: str) -> dict[str, torch.nn.Module]:
    """Name -> layer, in the network's order: linear layers and 2D convolutions that `targets` (a key of TARGETS) means.

    attention        queries, keys, values and outputs of self-, cross- and joint attention; in a text model, of its CLIP encoders
                     (T5 and language models stay frozen, as in most trainers: they are larger than all else together)
    feed-forward     the two (gated: three) matrices between the attentions
    convolutions     the U-Net's residual blocks, down- and upsampling, and the projections around its transformers (LyCORIS's LoCon)
    cross-attention  the U-Net's attn2; models with joint attention have none
    Where a part matches nothing, the log says so; ValueError where all of it does.
    """
    if targets not in TARGETS:
        raise ValueError(f"targets is {targets!r}; expected one of {', '.join(map(repr, TARGETS))}.")
    weighted = {name: layer for name, layer in network.named_modules() if getattr(layer, "weight", None) is not None and layer.weight.ndim in (2, 4)}
    chosen: set[str] = set()
    for part, patterns in TARGETS[targets].items():
        found = _named(weighted, patterns)
        if not found:
            log.warning("Kindred: %s has no %s layers that are known by name; the rest of %r is trained.", type(network).__name__, part, targets)
        chosen |= found
    if not chosen:
        fitting = [repr(other) for other, parts in TARGETS.items() if any(_named(weighted, patterns) for patterns in parts.values())]
        advice = (
            f"Choose {' or '.join(fitting)} in `targets`."
            if fitting
            else "Kindred does not know its layers by name, so it can learn a token on it, but no adapter."
        )
        raise ValueError(f"{type(network).__name__} has no layer that {targets!r} means. {advice}")
    return {name: layer for name, layer in weighted.items() if name in chosen}


def _named(layers, patterns: tuple[str, ...]) -> set[str]:
    """The names among `layers` that end in one of the patterns."""
    pattern = re.compile(r"(?:^|\.)(?:" + "|".join(patterns) + ")$")
    return {name for name in layers if pattern.search(name)}
