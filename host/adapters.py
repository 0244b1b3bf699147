"""Weight patches of the host as factored terms, which apply to weights and to activations.

A patch is the host's tuple (strength, value, strength_model, offset, function). `additive_term` reads patches that make
`weight + strength * A` with an A that does not depend on the weight; `dora_parts` reads a DoRA and `oft_rotation` an OFT. They return
None for all others (BOFT, GLoRA, `set`, functions, padding), and the caller compares whole weights instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter, OFTAdapter, WeightAdapterBase

Patch = tuple[float, Any, float, Any, Any]


@dataclass(frozen=True)
class LowRank:
    """A = up @ down on the output rows [start, start + length) of the weight (all of them where `rows` is None)."""

    up: torch.Tensor  # [rows, rank]
    down: torch.Tensor  # [rank, in] or [rank, in, *kernel]
    rows: tuple[int, int] | None = None

    def numel(self) -> int:
        return self.up.numel() + self.down.numel()


@dataclass(frozen=True)
class Kronecker:
    """A = w1 (x) w2: A[i k, j l] = w1[i, j] w2[k, l]."""

    w1: torch.Tensor  # [out1, in1]
    w2: torch.Tensor  # [out2, in2] or [out2, in2, *kernel]

    def numel(self) -> int:
        return self.w1.numel() + self.w2.numel()


@dataclass(frozen=True)
class Hadamard:
    """A = (a1 b1) * (a2 b2), elementwise on the weight as [out, in * kernel]."""

    a1: torch.Tensor  # [out, rank]
    b1: torch.Tensor  # [rank, in * kernel]
    a2: torch.Tensor
    b2: torch.Tensor

    def numel(self) -> int:
        return self.a1.numel() + self.b1.numel() + self.a2.numel() + self.b2.numel()


@dataclass(frozen=True)
class Scale:
    """A = diag(v) W', row scales of the patched weight W' itself."""

    v: torch.Tensor  # [out]

    def numel(self) -> int:
        return self.v.numel()


@dataclass(frozen=True)
class Rotation:
    """A = B W' with a block-diagonal B along the outputs of the patched weight W' itself."""

    blocks: torch.Tensor  # [n, b, b], n b = out

    def numel(self) -> int:
        return self.blocks.numel()


@dataclass(frozen=True)
class Full:
    """A itself, in the shape of the weight."""

    value: torch.Tensor

    def numel(self) -> int:
        return self.value.numel()


Term = LowRank | Kronecker | Hadamard | Full | Scale | Rotation

# An OFT's base weight is computed back from the patched one; this bounds how much the rounding error may grow.
LARGEST_INVERSE = 4.0


def additive_term(patch: Patch, shape: torch.Size) -> tuple[float, Term] | None:
    """(factor, A) of `patch` on a weight of `shape`: the patch adds factor * A. None if the patch is not additive."""
    strength, value, strength_model, offset, function = patch
    if strength_model != 1.0 or function is not None:
        return None
    rows = None
    if offset is not None:
        if offset[0] != 0 or not isinstance(value, LoRAAdapter):
            return None
        rows = (offset[1], offset[2])
    if isinstance(value, WeightAdapterBase):
        read = {LoRAAdapter: _lora, LoHaAdapter: _loha, LoKrAdapter: _lokr}.get(type(value))
        scaled = read(value.weights, shape, rows) if read else None
        return None if scaled is None else (strength * scaled[0], scaled[1])
    if isinstance(value, list) or not isinstance(value, tuple):
        return None
    patch_type, content = ("diff", value) if len(value) == 1 else value[:2]
    if patch_type != "diff" or content[0].shape != shape or (len(content) > 1 and content[1].get("pad_weight")):
        return None
    return strength, Full(content[0])


def dora_parts(patch: Patch, shape: torch.Size) -> tuple[torch.Tensor, float, LowRank] | None:
    """(magnitude [out], factor, A = up @ down) of a DoRA over outputs, or None for any other patch.

    The host makes W + strength * (diag(magnitude / |W|) (W + factor * A) - W).
    """
    _, value, strength_model, offset, function = patch
    if strength_model != 1.0 or function is not None or offset is not None or not isinstance(value, LoRAAdapter):
        return None
    up, down, alpha, mid, magnitude, reshape = value.weights
    if magnitude is None or magnitude.shape != (shape[0], *[1] * (len(shape) - 1)):
        return None
    scaled = _lora((up, down, alpha, mid, None, reshape), shape, None)
    return None if scaled is None else (magnitude.flatten(), *scaled)


def oft_rotation(patch: Patch, shape: torch.Size) -> Rotation | None:
    """The change W' - W that an OFT made, as a term of the patched weight W'; None for any other patch, or if rounding would grow too much.

    The host applies strength twice: W' = M W with M = 1 + strength^2 (R - 1)^T, so W' - W = (1 - M^-1) W'.
    """
    strength, value, strength_model, offset, function = patch
    if strength_model != 1.0 or function is not None or offset is not None or not isinstance(value, OFTAdapter):
        return None
    blocks, _, alpha, magnitude = value.weights
    if magnitude is not None or blocks.shape[0] * blocks.shape[1] != shape[0]:
        return None
    q = blocks.double() - blocks.double().transpose(1, 2)
    length = q.norm() + 1e-8
    if alpha and alpha > 0 and length > alpha:
        q = q * (float(alpha) / length)
    one = torch.eye(blocks.shape[1], dtype=q.dtype, device=q.device)
    r = (one + q) @ torch.linalg.inv(one - q)
    inverse = torch.linalg.inv(one + strength**2 * (r - one).transpose(1, 2))
    if not torch.linalg.matrix_norm(inverse, 2).max() <= LARGEST_INVERSE:
        return None
    return Rotation((one - inverse).float())


def same_value(a, b) -> bool:
    """Do two patch values hold the same adapter, even if its file was loaded twice?"""
    if a is b:
        return True
    if isinstance(a, WeightAdapterBase):
        return type(a) is type(b) and same_value(tuple(a.weights), tuple(b.weights))
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b.to(a.device))
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(same_value(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def same_patch(a: Patch, b: Patch) -> bool:
    """Do two patches put the same adapter at the same strength on the same part of the weight?"""
    return a is b or (a[0] == b[0] and same_value(a[1], b[1]) and same_target(a, b))


def same_target(a: Patch, b: Patch) -> bool:
    """Do two patches change the same part of the weight by the same rule, at any strength?"""
    return a[2] == b[2] and a[3] == b[3] and a[4] is b[4]


def adapter_name(patch: Patch) -> str:
    """The adapter's usual name (LoRA, DoRA, LoKr, ...), for the log."""
    value = patch[1]
    if isinstance(value, WeightAdapterBase):
        dora = {"lora": 4, "loha": 7, "lokr": 8}.get(value.name)
        return (
            "DoRA"
            if dora is not None and value.weights[dora] is not None
            else {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr"}.get(value.name, value.name.upper())
        )
    return "merge" if isinstance(value, list) else ("diff" if len(value) == 1 else str(value[0]))


def _lora(weights, shape, rows) -> tuple[float, Term] | None:
    up, down, alpha, mid, dora_scale, reshape = weights
    if dora_scale is not None or reshape is not None:
        return None
    rank = down.shape[0]
    if mid is not None:  # Tucker decomposition: the kernel is the middle factor
        down = torch.einsum("mn...,nj->mj...", mid.float(), down.flatten(1).float())
        if mid.shape[0] != up.flatten(1).shape[1]:
            return None
    up = up.flatten(1)
    expected = (rows[1] if rows else shape[0], *shape[1:])
    if up.shape[0] != expected[0] or down.numel() != up.shape[1] * _count(expected[1:]):
        return None  # the host logs an error for such a patch and skips it
    return (1.0 if alpha is None else alpha / rank), LowRank(up, down.reshape(up.shape[1], *expected[1:]), rows)


def _loha(weights, shape, rows) -> tuple[float, Term] | None:
    a1, b1, alpha, a2, b2, t1, t2, dora_scale = weights
    if dora_scale is not None or t1 is not None or t2 is not None:
        return None
    if a1.shape[0] != shape[0] or b1.shape[1] != _count(shape[1:]):
        return None
    return 1.0 if alpha is None else alpha / b1.shape[0], Hadamard(a1, b1, a2, b2)


def _lokr(weights, shape, rows) -> tuple[float, Term] | None:
    w1, w2, alpha, w1_a, w1_b, w2_a, w2_b, t2, dora_scale = weights
    if dora_scale is not None or t2 is not None:
        return None
    rank = None
    if w1 is None:
        rank, w1 = w1_b.shape[0], w1_a.float() @ w1_b.float()
    if w2 is None:
        rank, w2 = w2_b.shape[0], w2_a.float() @ w2_b.float()  # if both are factored, the host also uses the second rank
    scale = alpha / rank if alpha is not None and rank is not None else 1.0
    if w1.ndim != 2 or shape[1] % w1.shape[1] or w2.numel() * w1.numel() != shape.numel():
        return None
    if w2.ndim == 2:
        w2 = w2.reshape(w2.shape[0], shape[1] // w1.shape[1], *shape[2:])
    fits = (w1.shape[0] * w2.shape[0], w1.shape[1] * w2.shape[1], *w2.shape[2:]) == tuple(shape)
    return (scale, Kronecker(w1, w2)) if fits else None


def _count(shape) -> int:
    return int(torch.Size(shape).numel())
