"""The difference between a tuned model and its base, weight by weight, as factored terms where it has small factors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from ..host import adapters
from ..host import patcher as host_patcher
from ..host.adapters import LowRank, Patch, Scale, Term

# A second module costs a second forward, a second weight for the weak rows only memory. Up to this share of the weights, memory is cheaper.
LARGE_SHARE = 0.25

_compared: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Change:
    """tuned - base of one weight: the sum of factor * term, or `terms` None (compare the weights themselves).

    own, below  the patches of the tuned weight alone, after the first `below` patches that both have; `multiplied` may read terms from them
    """

    key: str
    terms: tuple[tuple[float, Term], ...] | None
    kinds: tuple[str, ...] = ()
    below: int = 0
    own: tuple[Patch, ...] = ()


@dataclass
class Difference:
    """All weights in which two models of one architecture differ."""

    changes: dict[str, Change] = field(default_factory=dict)
    separate: bool = False  # so many stored weights differ that the pair stays two modules


def compare(tuned, base, else_differ: bool = False) -> Difference:
    """The difference of two patchers of one architecture. Raises ValueError, one sentence, for a pair that does not fit.

    else_differ  the pair differs outside of its weights, so equal weights are not an error
    """
    _check_family(tuned, base)
    stored, separate = (set(), False) if host_patcher.share_module(tuned, base) else _stored_differences(tuned, base)
    if stored and (packed := next((key for key in sorted(stored) if host_patcher.is_packed(tuned, key) or host_patcher.is_packed(base, key)), None)):
        raise ValueError(
            "`model` and `base_model` are two checkpoints, and at least one is stored in a packed form (a GGUF file) that only its own loader can read, so they cannot be interpolated. "
            f"Load both from .safetensors files, or use one checkpoint and a LoRA. The first such weight is {packed!r}."
        )
    if separate:
        return Difference({key: Change(key, None, ("checkpoint",)) for key in stored}, separate=True)
    tuned_patches, base_patches = host_patcher.weight_patches(tuned), host_patcher.weight_patches(base)
    shapes = {key: host_patcher.pristine(tuned, key).shape for key in tuned_patches.keys() | base_patches.keys()}
    changes, more, less = {}, 0, 0
    for key in sorted(tuned_patches.keys() | base_patches.keys() | stored):
        if key in stored:
            changes[key], more = Change(key, None, ("checkpoint",)), more + 1
            continue
        change, grows = patch_difference(key, shapes[key], tuned_patches.get(key, []), base_patches.get(key, []))
        if change is not None:
            changes[key] = change
            more, less = more + grows, less + (not grows)
    if not changes and not else_differ:
        _refuse_equal(tuned, base)
    if less and not more:
        raise ValueError(
            f"`base_model` is more tuned than `model`: it alone carries patches on {less} weights. The two inputs are probably swapped: "
            "connect the model with the LoRA to `model`, and the model before the LoRA to `base_model`."
        )
    return Difference(changes)


def shared_patches(tuned: list[Patch], base: list[Patch]) -> int:
    """The number of equal patches at the start of both lists."""
    shared = 0
    while shared < min(len(tuned), len(base)) and adapters.same_patch(tuned[shared], base[shared]):
        shared += 1
    return shared


def patch_difference(key: str, shape, tuned: list[Patch], base: list[Patch]) -> tuple[Change | None, bool]:
    """(the change between two lists of patches on one weight, or None if they are equal; is the tuned list the stronger one?)"""
    shared = shared_patches(tuned, base)
    tuned, base = tuned[shared:], base[shared:]
    if not tuned and not base:
        return None, False
    # a patch that both have, at another position or strength: one term with the difference of the strengths
    pairs: list[list] = [[patch, patch[0], 0.0] for patch in tuned]
    for patch in base:
        twin = next((pair for pair in pairs if adapters.same_target(pair[0], patch) and adapters.same_value(pair[0][1], patch[1])), None)
        if twin is None:
            pairs.append([patch, 0.0, patch[0]])
        else:
            twin[2] += patch[0]
    kinds = tuple(dict.fromkeys(adapters.adapter_name(patch) for patch, here, there in pairs if here != there))
    grows = any(abs(here) > abs(there) for _, here, there in pairs)
    read = [(found, here - there) for patch, here, there in pairs if (found := adapters.additive_term((1.0, *patch[1:]), shape)) is not None]
    if len(read) < len(pairs):
        return Change(key, None, kinds, shared, () if base else tuple(tuned)), grows
    terms = tuple((found[0] * strength, found[1]) for found, strength in read if strength != 0.0)
    return (Change(key, terms, kinds) if terms else None), grows


def multiplied(own: tuple[Patch, ...], shape: torch.Size, below: Callable[[int], torch.Tensor]) -> tuple[tuple[float, Term], ...] | None:
    """tuned - base as terms, for patches `own` that multiply the weight: DoRAs among LoRAs, or one OFT. None for all others.

    They make W' = diag(c) W + L of the base W, so W' - W = diag(1 - 1/c) W' + diag(1/c) L, whose terms are as small as the adapter.
    below(i): the weight under patch i of `own`, in float32, for DoRA's norms.
    """
    if len(own) == 1 and (turn := adapters.oft_rotation(own[0], shape)) is not None:
        return ((1.0, turn),)
    c, low = torch.ones(shape[0]), []
    for i, patch in enumerate(own):
        added, dora = adapters.additive_term(patch, shape), adapters.dora_parts(patch, shape)
        if added is not None and isinstance(added[1], LowRank) and added[1].rows is None:
            low.append((added[1].up.float() * added[0], added[1].down))
        elif dora is not None:
            magnitude, factor, term = dora
            m = magnitude.float().cpu() / (below(i).flatten(1).norm(dim=1).cpu() + torch.finfo(torch.float32).eps)
            by = 1.0 + patch[0] * (m - 1.0)
            low = [(by[:, None] * up, down) for up, down in low]
            low.append(((patch[0] * factor * m)[:, None] * term.up.float().cpu(), term.down))
            c = by * c
        else:
            return None
    if not c.abs().min() * adapters.LARGEST_INVERSE >= 1:
        return None
    return ((1.0, Scale(1 - 1 / c)), *((1.0, LowRank(up.cpu() / c[:, None], down)) for up, down in low))


def _check_family(tuned, base) -> None:
    for name, one in (("model", tuned), ("base_model", base)):
        if host_patcher.has_bypass(one):
            raise ValueError(f"`{name}` carries a LoRA in bypass mode, which cannot be compared with the base. Load it with the ordinary LoRA loader.")
    if host_patcher.share_module(tuned, base):
        return
    ours, theirs = host_patcher.weight_shapes(tuned), host_patcher.weight_shapes(base)
    if ours.keys() != theirs.keys():
        missing = len(theirs.keys() - ours.keys()) + len(ours.keys() - theirs.keys())
        raise ValueError(
            f"`model` is {host_patcher.architecture_name(tuned)} and `base_model` is {host_patcher.architecture_name(base)}: {missing} weights exist in only one of them. "
            "Guidance interpolates weights, so both must be of one architecture: connect the model that `model` was tuned from."
        )
    for key in ours:
        if ours[key] != theirs[key] and not _padded(ours[key], theirs[key]):
            raise ValueError(
                f"`model` is {host_patcher.architecture_name(tuned)} and `base_model` is {host_patcher.architecture_name(base)}, and {key!r} is {list(ours[key])} in one and {list(theirs[key])} in the other: "
                "both must be of one architecture. Connect the model that `model` was tuned from."
            )


def _padded(tuned, base) -> bool:
    """Instruction editing adds input channels to the first convolution; the base is the same with zeros there."""
    return len(tuned) == len(base) == 4 and tuned[0] == base[0] and tuned[2:] == base[2:] and tuned[1] > base[1]


def _stored_differences(tuned, base) -> tuple[set[str], bool]:
    """(keys of the stored weights that differ, are they too many for one module?). Computed once for each pair of loaded models."""
    known = _compared.setdefault(tuned.model, weakref.WeakKeyDictionary())
    if base.model not in known:
        known[base.model] = _scan(tuned, base)
    return known[base.model]


def _scan(tuned, base) -> tuple[set[str], bool]:
    shapes, theirs = host_patcher.weight_shapes(tuned), host_patcher.weight_shapes(base)
    total = sum(shape.numel() for shape in shapes.values())
    keys, differing = set(), 0
    for key in sorted(shapes, key=lambda name: shapes[name].numel()):  # the small ones first: a full fine-tune shows there at once
        if shapes[key] != theirs[key]:
            return set(shapes), True
        if not host_patcher.same_weight(host_patcher.pristine(tuned, key), host_patcher.pristine(base, key)):
            keys.add(key)
            differing += shapes[key].numel()
            if differing > LARGE_SHARE * total:
                return set(shapes), True
    return keys, False


def _refuse_equal(tuned, base) -> None:
    where = "the same model" if host_patcher.share_module(tuned, base) else "two copies of one checkpoint"
    raise ValueError(
        f"`model` and `base_model` are {where} with equal weights, so there is nothing to guide away from. Connect the model AFTER the LoRA "
        "(or the fine-tuned checkpoint) to `model` and the one before it to `base_model`. If only the text encoder was tuned, use plain CFG with its base's empty prompt as negative."
    )
