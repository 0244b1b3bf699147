"""SVDiff (Han et al., ICCV 2023, eq. 3): W = U diag(s) V^T becomes W' = U diag(relu(s + shift)) V^T."""

from __future__ import annotations

import torch
from torch import Tensor

from ...host import train_adapters
from .side import Side, apply_weight


class Kind(Side):
    """Only the shifts are trained, one for each singular value: `min(out, in)` numbers a layer. They start at zero.

    A convolution's weight is decomposed as [out, in * kernel]. U and V^T lie beside the layer in the weight's own dtype (float32 for
    weights of 8 bits or less in bfloat16), together about twice its size: the shifts are few, the memory is not small.
    The file holds the difference U diag(relu(s + shift) - s) V^T in full (`.diff`), which every loader of core reads; Save Concept's
    `compress` makes a LoRA of it.
    """

    def __init__(self, layer, rank, alpha, generator, device):
        weight = train_adapters.computed_weight(layer, device)
        dtype = layer.weight.dtype if layer.weight.dtype in (torch.float32, torch.float16, torch.bfloat16) else torch.bfloat16
        u, s, v = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        out, *rest = weight.shape
        self.u = u.to(dtype).view(out, -1, *[1] * (len(rest) - 1))  # [out, values] or [out, values, 1, 1]
        self.v = v.to(dtype).view(-1, *rest)  # [values, in] or [values, in, *kernel]
        self.values = s  # float32
        self.shift = torch.nn.Parameter(torch.zeros_like(s))
        self.parameters = {"spectral_shift": self.shift}
        self.layer = layer

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = apply_weight(self.layer, x, self.v)
        moved = self._moved().to(hidden.dtype)
        hidden = hidden * (moved.view(-1, 1, 1) if self.v.ndim == 4 else moved)
        if self.u.ndim == 4:
            return y + torch.nn.functional.conv2d(hidden, self.u.to(hidden.dtype)).to(y.dtype)
        return y + torch.nn.functional.linear(hidden, self.u.to(hidden.dtype)).to(y.dtype)

    def _moved(self) -> Tensor:
        """relu(s + shift) - s: by how much each singular value has moved."""
        return torch.relu(self.values + self.shift) - self.values

    @torch.no_grad()
    def saved(self) -> dict[str, Tensor]:
        difference = (self.u.flatten(1).float() * self._moved()) @ self.v.flatten(1).float()
        return {"diff": difference.view(self.layer.weight.shape).cpu()}
