"""Losses: reconstruction and its weights, the Semantic Preservation Loss, output preservation. Pure torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .declare import implemented
from .settings import LOSSES

_ERRORS = {  # of an error e, robust ones with the setting huber_delta
    "l2": lambda e, delta: e**2,
    "huber": lambda e, delta: 2 * functional.huber_loss(e, torch.zeros_like(e), reduction="none", delta=delta),
    "smooth_l1": lambda e, delta: 2 * functional.huber_loss(e, torch.zeros_like(e), reduction="none", delta=delta) / delta,
}
implemented(LOSSES, _ERRORS, "the setting loss")


def reconstruction(prediction: Tensor, target: Tensor, mask: Tensor | None = None, kind: str = "l2", huber_delta: float = 0.1) -> Tensor:
    """L_recon of each row [n]: the mean error inside the mask (ClassDiffusion eq. 3; Custom Diffusion's mask).

    prediction, target  [n, channels, height, width] (or with frames before the height): the noise, v or the flow's velocity
    mask                [n, 1, height, width] in 0..1, or None = everywhere. The mean is over masked positions AND channels; the
                        released code divides by the positions alone, which only scales the loss by the number of channels
    kind                of an error e: "l2" is e^2, as in the papers. The robust ones give outliers less weight; `huber_delta` (d) is the limit:
                        "huber" is e^2 up to |e| = d and 2 d |e| - d^2 beyond (twice Huber's, so that it is l2 within)
                        "smooth_l1" is huber / d, which becomes 2 |e| as d falls
    """
    if kind not in _ERRORS:
        raise ValueError(f"The loss is {kind!r}; expected one of {', '.join(map(repr, _ERRORS))}.")
    if kind != "l2" and huber_delta <= 0:
        raise ValueError(f"The loss {kind!r} needs a huber_delta above 0, found {huber_delta}.")
    error = _ERRORS[kind](prediction.float() - target.float(), huber_delta)
    if mask is None:
        return error.flatten(1).mean(dim=1)
    mask = mask.view(*mask.shape[:2], *[1] * (error.ndim - mask.ndim), *mask.shape[2:]).expand(-1, -1, *error.shape[2:])
    return (error * mask).flatten(1).sum(dim=1) / (mask.flatten(1).sum(dim=1) * error.shape[1])


def min_snr_weight(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """Min-SNR-gamma weights of the rows' L_recon, [n] (Hang et al., ICCV 2023, with gamma 5): min(snr, gamma) on the error of x0.

    snr         [n], alpha^2 / sigma^2 at each row's noise level
    prediction  "eps": an error of eps is one of x0 times snr, so the weight is min(snr, gamma) / snr;
                "v": an error of v is one of x0 times snr + 1, so it is min(snr, gamma) / (snr + 1)
    """
    if prediction not in ("eps", "v"):
        raise ValueError(f"Min-SNR weighting is defined for eps and v prediction, and this model predicts {prediction!r}. Set min_snr_gamma to 0.")
    if gamma <= 0:
        raise ValueError(f"min_snr_gamma is {gamma}; expected a positive number (the paper: 5), or 0 to leave the weighting out.")
    return snr.clamp(max=gamma) / (snr if prediction == "eps" else snr + 1)


def output_preservation(adapted: Tensor, base: Tensor) -> Tensor:
    """Output preservation (DOP) of each row [n]: the mean squared error between the trained and the base network's outputs for the CLASS prompt.

    adapted, base  [n, channels, height, width]: the trained and the untrained network's output for the same noisy latents, noise level and
                   class prompt; `base` carries no gradient
    """
    return reconstruction(adapted, base.detach())


def drift(token_features: list[Tensor], class_features: list[Tensor]) -> Tensor:
    """Semantic drift of one concept, 1 - cos(E(P_tp), E(P_cp)): 0 = the token means its class, 1 = nothing of the class is left.

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
