"""Spherical interpolation and Test-time Embedding Adjustment (TEA, equations 1 and 2): rotate embeddings toward their class. Pure torch."""

from __future__ import annotations

import torch

NORMS = {"midpoint": 1.0, "class": 4.0}  # norm -> the largest beta: between two lengths, and any multiple of one


def slerp(a: torch.Tensor, b: torch.Tensor, r: float | torch.Tensor) -> torch.Tensor:
    """Spherical interpolation from `a` to `b` (Shoemake 1985) along the last axis.

        slerp(a, b; r) = sin((1-r) t)/sin t * a + sin(r t)/sin t * b        t = angle between a and b

    a, b   [..., D], broadcast against each other; any floating dtype (the result has that of `a`)
    r      share of the way, a number or a tensor [..., 1]

    Vectors of equal length stay on their sphere. For equal directions, or if one vector is zero, it is linear interpolation. For opposite
    directions every great circle is a shortest path: the rotation then passes through the coordinate axis in which `a` is smallest (the
    first of equals), so the result is always the same.
    """
    return _turn(a, b, r, lambda norm_a, norm_b: (torch.ones_like(norm_a), torch.ones_like(norm_b)))[0].to(a.dtype)


def adjust(v: torch.Tensor, c: torch.Tensor, alpha: float | torch.Tensor = 0.2, beta: float = 0.5, norm: str = "midpoint") -> torch.Tensor:
    """TEA: rotate `v` by the share `alpha` toward its class `c`, and give it a norm between the two.

        v_hat = slerp(n v/|v|, n c/|c|; alpha)      n = (1-beta)|v| + beta|c|   `midpoint`, the authors' released code
                                                    n = beta|c|                 `class`, as the paper writes it

    v, c   [..., D], broadcast over the leading axes; returns the shape of both together in the dtype of v
    alpha  rotation in [0, 1], a number or a tensor [..., 1];  beta from 0 to NORMS[norm]; above 1 is in the paper's sweep (Figure 6)

    If alpha is 0 and n equals |v|, or if v or c is zero (and has no direction), v is returned bit for bit.
    Raises ValueError for values out of range or different widths.
    """
    check_length(beta, norm)
    if not torch.is_tensor(alpha):
        check_share("alpha", alpha)
    if v.shape[-1] != c.shape[-1]:
        raise ValueError(f"The embeddings have widths {v.shape[-1]} and {c.shape[-1]}: they come from different text encoders.")

    def rescale(norm_v, norm_c):
        n = beta * norm_c if norm == "class" else norm_v + beta * (norm_c - norm_v)
        return n / _safe(norm_v), n / _safe(norm_c)

    out, norm_v, norm_c, scale_v = _turn(v, c, alpha, rescale)
    unchanged = ((torch.as_tensor(alpha, device=v.device) == 0) & (scale_v == 1)) | (norm_v == 0) | (norm_c == 0)
    return torch.where(unchanged, v, out.to(v.dtype)) if bool(unchanged.any()) else out.to(v.dtype)


def check_share(name: str, value: float) -> float:
    """`value` if it is in [0, 1], else ValueError: a link can carry values that the widget does not allow."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value!r}; it must be a number from 0 to 1.")
    return float(value)


def check_length(beta: float, norm: str) -> None:
    """ValueError if there is no such norm, or beta is out of its range."""
    if norm not in NORMS:
        raise ValueError(f"norm is {norm!r}; expected one of {', '.join(map(repr, NORMS))}.")
    if not isinstance(beta, (int, float)) or isinstance(beta, bool) or not 0.0 <= beta <= NORMS[norm]:
        other = " With norm 'class' it may go up to 4." if norm == "midpoint" else ""
        raise ValueError(f"beta is {beta!r}; with norm {norm!r} it must be a number from 0 to {NORMS[norm]:g}.{other}")


def _turn(a, b, r, rescale, dtype=None):
    """slerp(s_a a, s_b b; r) with (s_a, s_b) = rescale(|a|, |b|), in float32 or wider; also |a|, |b| and s_a, each [..., 1].

    Near 180 degrees the result is a small difference of two large terms, so from 120 degrees on all is computed in float64 (if the
    device has it). Only three inner products and the last line touch the whole width.
    """
    dtype = dtype or torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    norm_a, norm_b = _norm(a), _norm(b)
    cos = ((a * b).sum(dim=-1, keepdim=True) / _safe(norm_a * norm_b)).clamp(-1, 1)
    if dtype != torch.float64 and a.device.type != "mps" and bool((cos < -0.5).any()):
        return _turn(a, b, r, rescale, torch.float64)

    r = torch.as_tensor(r, device=a.device).to(dtype)
    scale_a, scale_b = rescale(norm_a, norm_b)
    t = torch.acos(cos)
    sin_t = torch.sqrt((1 - cos) * (1 + cos))
    # For small t the weights hardly depend on it, so the precision that acos loses there does no harm.
    straight = sin_t < torch.finfo(dtype).eps ** 0.5
    divisor = torch.where(straight, 1.0, sin_t)
    weight_a = scale_a * torch.where(straight, 1 - r, torch.sin((1 - r) * t) / divisor)
    weight_b = scale_b * torch.where(straight, r, torch.sin(r * t) / divisor)
    out = (weight_a * a).addcmul_(weight_b, b)

    opposite = (cos < 0) & (sin_t < torch.finfo(dtype).eps ** 0.25)  # 1 + cos has lost half of its digits
    if bool(opposite.any()):
        unit = a / _safe(norm_a)
        length = (1 - r) * scale_a * norm_a + r * scale_b * norm_b
        out = torch.where(opposite, length * (torch.cos(r * t) * unit + torch.sin(r * t) * _perpendicular(unit)), out)
    return out, norm_a, norm_b, scale_a


def _norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _safe(norm: torch.Tensor) -> torch.Tensor:
    return torch.where(norm == 0, 1.0, norm)


def _perpendicular(unit: torch.Tensor) -> torch.Tensor:
    """A unit vector at a right angle to each `unit` [..., D]: the axis of its smallest component, made orthogonal. D = 1 has none: zero."""
    axis = torch.nn.functional.one_hot(unit.abs().argmin(dim=-1), unit.shape[-1]).to(unit.dtype)
    side = axis - (axis * unit).sum(dim=-1, keepdim=True) * unit
    return side / _safe(_norm(side))
