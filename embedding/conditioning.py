"""Conditioning SLERP, TEA on the prompt (equation 2): each row is rotated toward its partner in the class prompt.

A conditioning is the host's: a list of [tensor [B, rows, width], dict]. The other entries of the dict (areas, masks, hooks, ControlNets,
timestep ranges) stay attached. The incoming lists, dicts and tensors are never changed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..host import text_rows
from ..host.types import Conditioning
from .align import NONE
from .layout import Block, blocks, pooled_parts
from .slerp import adjust, check_length, check_share

_GAP = 1e-5  # the host's sampler compares with < and >: without a gap, two adjacent ranges would both be active at the border


def adjust_conditioning(
    conditioning: Conditioning,
    class_conditioning: Conditioning,
    alpha: float = 0.2,
    beta: float = 0.5,
    norm: str = "midpoint",
    partners: Mapping[str, torch.Tensor] | None = None,
    start: float = 0.0,
    end: float = 1.0,
) -> list:
    """Rotate every entry of `conditioning` toward its entry of `class_conditioning` (one for all, or as many).

    alpha, beta, norm   as in `slerp.adjust`
    partners            encoder key -> row of the class conditioning for each row (-1 = the row does not change); None = by position
    start, end          part of sampling in which the adjustment is active; outside of it the entry is used unchanged

    Raises ValueError, with both numbers, if counts, widths or lengths do not fit.
    """
    for name, value in (("alpha", alpha), ("start_percent", start), ("end_percent", end)):
        check_share(name, value)
    check_length(beta, norm)
    if start >= end:
        raise ValueError(f"start_percent is {start} and end_percent is {end}; the end must come after the start.")
    if not conditioning or not class_conditioning:
        raise ValueError(f"The conditioning has {len(conditioning)} entries and the class conditioning {len(class_conditioning)}; both need at least one.")
    if len(class_conditioning) not in (1, len(conditioning)):
        raise ValueError(
            f"The conditioning has {len(conditioning)} entries and the class conditioning {len(class_conditioning)}. "
            "Give one class conditioning for all, or one for each."
        )
    anchors = class_conditioning * len(conditioning) if len(class_conditioning) == 1 else class_conditioning
    out = []
    for entry, anchor in zip(conditioning, anchors, strict=True):
        out += _during(entry, _adjust_entry(entry, anchor, alpha, beta, norm, partners), start, end)
    return text_rows.note_again(out)


def _adjust_entry(entry: list, anchor: list, alpha: float, beta: float, norm: str, partners: Mapping[str, torch.Tensor] | None) -> list:
    cond, extra = entry[0], dict(entry[1])
    class_cond, class_extra = anchor[0], anchor[1]
    pooled, class_pooled = extra.get("pooled_output"), class_extra.get("pooled_output")
    masks = extra.get("attention_mask"), class_extra.get("attention_mask")
    turned = _adjust_rows(cond, class_cond, pooled, class_pooled, *masks, alpha, beta, norm, partners)
    if pooled is not None and class_pooled is not None:
        if pooled.shape[-1] != class_pooled.shape[-1]:
            raise ValueError(f"The pooled vectors have widths {pooled.shape[-1]} and {class_pooled.shape[-1]}: they come from different text encoders.")
        parts = zip(pooled.split(pooled_parts(pooled), dim=-1), class_pooled.to(pooled).split(pooled_parts(pooled), dim=-1), strict=True)
        extra["pooled_output"] = torch.cat([adjust(v, c, alpha, beta, norm) for v, c in parts], dim=-1)
    return [turned, extra, *entry[2:]]


def _adjust_rows(cond, class_cond, pooled, class_pooled, mask, class_mask, alpha, beta, norm, partners) -> torch.Tensor:
    if cond.ndim != 3 or class_cond.ndim != 3:
        raise ValueError(f"The conditionings have shapes {list(cond.shape)} and {list(class_cond.shape)}; expected [batch, rows, width], as text has.")
    if cond.shape[-1] != class_cond.shape[-1]:
        raise ValueError(
            f"The conditioning is {cond.shape[-1]} wide and the class conditioning {class_cond.shape[-1]}: "
            "they come from text encoders of different model families."
        )
    if class_cond.shape[0] not in (1, cond.shape[0]):
        raise ValueError(f"The conditioning is a batch of {cond.shape[0]} and the class conditioning one of {class_cond.shape[0]}; expected 1 or as many.")
    class_cond = class_cond.to(cond)
    own, other = blocks(cond, pooled), {block.encoder: block for block in blocks(class_cond, class_pooled)}
    out = cond.clone()
    for block in own:
        if block.encoder not in other:
            continue  # the class prompt was encoded without this encoder
        twin = other[block.encoder]
        partner = _partner(block, twin, partners, mask, class_mask).to(cond.device)
        alone = (partner == NONE).nonzero().squeeze(-1)
        if len(alone) == len(partner):
            continue
        v, c = block.of(cond), twin.of(class_cond)
        if len(alone) or not torch.equal(partner, torch.arange(c.shape[-2], device=partner.device)):
            c = c.index_select(-2, partner.clamp(min=0))
        turned = adjust(v, c, alpha, beta, norm)
        if len(alone):
            turned[..., alone, :] = v[..., alone, :]
        block.of(out).copy_(turned)
    return out


def _partner(block: Block, twin: Block, partners: Mapping[str, torch.Tensor] | None, mask, class_mask) -> torch.Tensor:
    rows, class_rows = block.stop - block.start, twin.stop - twin.start
    if partners is None:
        # A mask says which rows the model reads: beyond the shorter prompt there is nothing to turn, or nothing to turn to.
        if rows != class_rows and (mask is None or class_mask is None):
            raise ValueError(
                f"The conditioning has {rows} rows and the class conditioning {class_rows}. By position they must be equally long: "
                "use align = token, or Text Encode Concept, which pads the class prompt by the encoder's own rule."
            )
        partner = torch.arange(rows)
        partner[class_rows:] = NONE
    else:
        partner = _of_encoder(block, rows, partners).clone()
        if len(partner) != rows or int(partner.max()) >= class_rows:
            raise ValueError(
                f"The conditioning has {rows} rows and its class {class_rows}, the prompts at least {len(partner)} and {int(partner.max()) + 1}: "
                "the texts are not those that were encoded."
            )
    for each, count, index in ((mask, rows, torch.arange(rows)), (class_mask, class_rows, partner)):
        if each is not None and block.encoder not in ("clip_l", "clip_g") and each.shape[-1] == count:
            live = each.reshape(-1, count).bool().any(dim=0).cpu()
            partner = partner.where((index != NONE) & live[index.clamp(min=0)], torch.tensor(NONE))
    return partner


def _of_encoder(block: Block, rows: int, partners: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The partners that belong to a block: by the encoder's name, or by length where one of several encoders wrote it all."""
    if block.encoder in partners:
        found = partners[block.encoder]
        return found[:rows] if block.encoder in ("clip_l", "clip_g") else found  # the host cuts the longer of the two
    fits = [partner for partner in partners.values() if len(partner) == rows]
    if not fits:
        lengths = ", ".join(f"{key} {len(partner)}" for key, partner in partners.items())
        raise ValueError(
            f"The conditioning has {rows} rows and the prompt {lengths or 'none'}: the texts are not those that were encoded, "
            "or this model's rows cannot be told by their tokens. Then use align = position."
        )
    return fits[-1]


def _during(entry: list, adjusted: list, start: float, end: float) -> list:
    """`adjusted` within [start, end] of the sampling and `entry` outside of it, within the range that the entry has already."""
    if start == 0.0 and end == 1.0:
        return [adjusted]
    first, last = entry[1].get("start_percent", 0.0), entry[1].get("end_percent", 1.0)
    begin, stop = max(start, first), min(end, last)
    if begin >= stop:
        return [entry]
    out = []
    if begin > first:
        out.append([entry[0], {**entry[1], "start_percent": first, "end_percent": begin - _GAP}, *entry[2:]])
    out.append([adjusted[0], {**adjusted[1], "start_percent": begin, "end_percent": stop}, *adjusted[2:]])
    if stop < last:
        out.append([entry[0], {**entry[1], "start_percent": stop + _GAP, "end_percent": last}, *entry[2:]])
    return out
