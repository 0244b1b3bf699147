"""Metrics of a learned token's semantic drift. Pure torch.

Distances between the sentence features A [N, D] of prompts with V* and B [N, D] of the same prompts with the class word, and within A, after
"Mitigating Semantic Collapse in Generative Personalization" (TEA), section 3.2 and equations 6 to 10. Inter-set distances grow as V* leaves
its class; intra-set distances fall as all prompts come to mean the same: V*.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TEMPERATURE = 0.1


@dataclass(frozen=True)
class SetDistances:
    """One number for each of the paper's four metrics."""

    l2: float
    hausdorff: float
    mahalanobis: float
    kl: float


def inter(a: torch.Tensor, b: torch.Tensor, temperature: float = TEMPERATURE) -> SetDistances:
    """How far the set a [N, D] is from the set b [M, D]; KL pairs a_i with b_i and needs N = M (nan otherwise)."""
    a, b = a.double(), b.double()
    distance = torch.cdist(a, b)
    kl = kl_between(to_set(a, b, temperature), to_set(b, b, temperature)).mean().item() if len(a) == len(b) else float("nan")
    return SetDistances(distance.mean().item(), distance.min(dim=1).values.max().item(), mahalanobis(a, b).mean().item(), kl)


def intra(a: torch.Tensor, temperature: float = TEMPERATURE) -> SetDistances:
    """How far the elements of a [N, D] are from each other, N >= 2; a point is never compared with itself."""
    a = a.double()
    distance = torch.cdist(a, a)
    other = ~torch.eye(len(a), dtype=torch.bool)
    nearest = distance.masked_fill(~other, torch.inf).min(dim=1).values
    p = to_set(a, a, temperature)
    kl = kl_between(p.unsqueeze(1), p.unsqueeze(0))[other].mean().item()
    return SetDistances(distance[other].mean().item(), nearest.max().item(), mahalanobis(a, a).mean().item(), kl)


def mahalanobis(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Distance of each row of a [N, D] from the distribution of b [M, D]: sqrt((a - m)^T S^-1 (a - m)), [N] (equation 8).

    There are far fewer prompts than dimensions, so the sample covariance has no inverse. S is the estimate of Ledoit and Wolf (2004),
    which shrinks it toward a multiple of the identity by the share that minimizes the expected error; it is never singular
    (unless all of b is one point: then the distance is 0 at that point and infinite elsewhere). Solved in the span of b, O(M^2 D).
    """
    a, b = a.double(), b.double()
    mean = b.mean(dim=0)
    x, d = b - mean, a - mean
    share, scale = ledoit_wolf(x)
    if scale == 0:
        return torch.where(d.norm(dim=-1) > 0, torch.inf, 0.0)
    if share == 0:  # so many samples that the plain inverse is right
        return torch.einsum("nd,de,ne->n", d, torch.linalg.pinv(x.T @ x / len(x), hermitian=True), d).clamp(min=0).sqrt()
    _, s, v = torch.linalg.svd(x, full_matrices=False)
    inside = d @ v.T
    floor = share * scale
    within = (inside**2 / ((1 - share) * s**2 / len(x) + floor)).sum(dim=-1)
    outside = (d.square().sum(dim=-1) - inside.square().sum(dim=-1)).clamp(min=0) / floor
    return (within + outside).sqrt()


def ledoit_wolf(x: torch.Tensor) -> tuple[float, float]:
    """(share, scale) of the shrunk covariance (1 - share) S + share * scale * I of centred samples x [M, D] (Ledoit and Wolf 2004).

    With the symbols of the paper: scale = m = tr(S)/D, d^2 = |S - mI|^2/D, b^2 = the mean of |x_k x_k^T - S|^2/D over M, share = min(b^2, d^2)/d^2.
    """
    count, width = x.shape
    gram = x @ x.T  # all traces follow from the inner products, without a D x D matrix
    scale = gram.diagonal().sum().item() / count / width
    s_squared = (gram**2).sum().item() / count**2  # tr(S^2)
    d_squared = s_squared / width - scale**2
    b_squared = ((gram.diagonal() ** 2).sum().item() / count - s_squared) / count / width
    return (min(max(b_squared, 0.0), d_squared) / d_squared if d_squared > 1e-12 * scale**2 else 1.0), scale


def to_set(a: torch.Tensor, b: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log of how each row of a [N, D] relates to the elements of b [M, D]: softmax of their cosines over the temperature, [N, M] (equation 9)."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature!r}; it must be above 0.")
    unit_a, unit_b = (torch.nn.functional.normalize(x, dim=-1) for x in (a, b))
    return torch.log_softmax(unit_a @ unit_b.T / temperature, dim=-1)


def kl_between(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) over the last axis, from logarithms, in nats (equation 10)."""
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def rank(value: float, others: torch.Tensor) -> int:
    """The rank of `value` among itself and `others`, 1 = smallest."""
    return int((others < value).sum()) + 1


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Cosine of two vectors in float64; 0 where one of them is zero."""
    return torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()
