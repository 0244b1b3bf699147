"""Why something is learned: the reconstruction loss and the Semantic Preservation Loss. Pure torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def reconstruction(prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """L_recon for each row [n]: the mean squared error where the mask is open (ClassDiffusion eq. 3; Custom Diffusion's mask).

    prediction, target  [n, channels, height, width], the noise (eps prediction) or v
    mask                [n, 1, height, width] in 0..1, or None for everywhere. Its mean is over open positions AND channels; the
                        released code divides by the positions alone, which only scales the loss by the number of channels
    """
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        return error.mean(dim=(1, 2, 3))
    return (error * mask).sum(dim=(1, 2, 3)) / (mask.sum(dim=(1, 2, 3)) * error.shape[1])


def drift(token_features: list[Tensor], class_features: list[Tensor]) -> Tensor:
    """One concept's 1 - cos(E(P_tp), E(P_cp)): 0 = the kind is kept, 1 = nothing of it is left.

    token_features  E("a photo of a V* dog"), [width] for each text encoder (SDXL has two, whose values are averaged); carries the
                    gradient to V*
    class_features  E("a photo of a dog") from the frozen encoders, likewise
    """
    return torch.stack(
        [1 - functional.cosine_similarity(own.float(), kind.float(), dim=-1) for own, kind in zip(token_features, class_features, strict=True)]
    ).mean()


def semantic_preservation(drifts: list[Tensor]) -> Tensor:
    """L_sp: the mean of the concepts' drifts (ClassDiffusion, ICLR 2025, eq. 6).

    The paper writes a sum over concepts; its released code takes the mean, which keeps the weight's meaning when concepts are added.
    """
    return torch.stack(drifts).mean()
