"""Low-rank compression of full weight differences (Custom Diffusion, CVPR 2023, section 3.2: "compressed models")."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

DIFFERENCE = ".diff"


@dataclass(frozen=True)
class Compressed:
    """The state with truncated differences, and the truncation's error.

    error    relative error over all truncated differences, as stored: ||D - D_r||_F / ||D||_F
    ranks    layer -> its rank; layers that are stored in full are missing
    """

    state: dict[str, torch.Tensor]
    error: float
    ranks: dict[str, int]


def compress(
    state: Mapping[str, torch.Tensor],
    energy: float,
    *,
    dtype: torch.dtype = torch.float32,
    always: bool = False,
    device: torch.device | str = "cpu",
    each: Callable[[], None] | None = None,
) -> Compressed:
    """Replace each two-dimensional `<layer>.diff` [out, in] with the LoRA of the lowest rank that keeps the share `energy` of its squared norm.

    D = U S V^T;  up = U_r sqrt(S_r), down = sqrt(S_r) V_r^T, alpha = r.  The relative error is about sqrt(1 - energy).

    energy  in (0, 1]; ValueError otherwise
    dtype   of the stored factors; the error includes its rounding
    always  even if the factors are not smaller than the difference (for layouts that cannot hold full differences)
    each    called before each layer, to allow an interrupt
    """
    if not 0 < energy <= 1:
        raise ValueError(f"compress is {energy}; expected a share between 0 and 1, for example 0.95 (0 = off).")
    result: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    lost = total = 0.0
    for key, value in state.items():
        if not key.endswith(DIFFERENCE) or value.ndim != 2:
            result[key] = value
            continue
        if each:
            each()
        difference = value.to(device, torch.float32)
        u, s, v = torch.linalg.svd(difference, full_matrices=False)
        kept = s.double().square().cumsum(0)
        # A difference of zero keeps one rank of zeros; rounding of the sum must not ask for more ranks than exist.
        rank = min(int((kept < energy * kept[-1]).sum()) + 1, len(s))
        if not always and rank * sum(value.shape) >= value.numel():
            result[key] = value
            continue
        root = s[:rank].sqrt()
        up, down = (u[:, :rank] * root).to(dtype), (root[:, None] * v[:rank]).to(dtype)
        layer = key.removesuffix(DIFFERENCE)
        result |= {f"{layer}.lora_up.weight": up.cpu(), f"{layer}.lora_down.weight": down.cpu(), f"{layer}.alpha": torch.tensor(float(rank))}
        ranks[layer] = rank
        lost += float((difference - up.float() @ down.float()).double().square().sum())
        total += float(kept[-1])
    return Compressed(result, math.sqrt(lost / total) if total else 0.0, ranks)
