"""What is learned in few numbers: LoRA, DoRA, LoHa, LoKr and OFT beside the frozen layers of a network.

Each kind works on activations, y = W x + side(x), so that no gradient of a whole weight is ever made (LoHa of a high rank alone makes
one: it is not of low rank). The parameters are float32; they are cast to the activations' dtype at each call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from ...host import train_adapters as host
from .base import Adapter
from .layers import target_layers

KINDS = ("LoRA", "DoRA", "LoHa", "LoKr", "OFT")


def low_rank(
    network: torch.nn.Module,
    kind: str,
    rank: int,
    alpha: float,
    targets: str = "attention",
    seed: int = 0,
    prefix: str = "diffusion_model.",
    device: torch.device | None = None,
) -> LowRank:
    """Put adapters of `kind` on the layers of `network` (a training copy) that `targets` means (see `layers.target_layers`).

    kind    LoRA (Hu et al., 2021), DoRA (Liu et al., 2024), LoHa, LoKr (LyCORIS), OFT (Qiu et al., 2023)
    rank    of LoRA, DoRA and LoHa; LoKr: about the size of the first Kronecker factor; OFT: about the size of a rotated block
    alpha   LoRA, DoRA and LoHa are scaled by alpha / rank; OFT: bound of the rotation's generator (0 = none); LoKr does not use it
    seed    decides the start, whatever the global random state is
    prefix  of the names in files: "diffusion_model." for the denoising network, "text_encoders." for `TrainableText.model`
    device  where the parameters live; where the layers do, if None
    At the start the network computes what it did before. Raises ValueError for a kind, rank or targets that cannot be.
    """
    if kind not in KINDS:
        raise ValueError(f"The kind of adapter is {kind!r}; expected one of {', '.join(map(repr, KINDS))}.")
    if rank < 1:
        raise ValueError(f"rank is {rank}; at least 1 is expected, usually 4 to 64.")
    return LowRank(target_layers(network, targets), kind, rank, alpha, seed, prefix, device)


class LowRank(Adapter):
    """One side for each layer, held by hooks of the layer. `parameters` are named `<layer>.<name in the file>`."""

    def __init__(self, layers: dict[str, torch.nn.Module], kind: str, rank: int, alpha: float, seed: int, prefix: str, device: torch.device | None):
        generator = torch.Generator().manual_seed(seed)
        self.kind, self._prefix, self._enabled = kind, prefix, True
        self._sides = {name: _SIDES[kind](layer, rank, alpha, generator, device or layer.weight.device) for name, layer in layers.items()}
        self.parameters = {f"{name}.{key}": value for name, side in self._sides.items() for key, value in side.parameters.items()}
        self._hooks = []
        for name, side in self._sides.items():
            self._hooks.append(layers[name].register_forward_hook(functools.partial(self._output, side)))
            if isinstance(side, _DoRA):
                self._hooks.append(layers[name].register_forward_pre_hook(functools.partial(self._input, side)))

    def lora(self) -> dict[str, Tensor]:
        """`<prefix><layer>.lora_up.weight` and the like -> float32 on the CPU, with the layer's `.alpha`."""
        state = {}
        for name, side in self._sides.items():
            state |= {f"{self._prefix}{name}.{key}": value.detach().float().cpu().clone() for key, value in side.parameters.items()}
            state[f"{self._prefix}{name}.alpha"] = torch.tensor(float(side.alpha))
        return state

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _input(self, side, layer, arguments):
        return (side.input(arguments[0]), *arguments[1:]) if self._enabled else None

    def _output(self, side, layer, arguments, output):
        return side.output(arguments[0], output) if self._enabled else None


class _LoRA:
    """y = W x + s up(down(x)), s = alpha / rank. down starts Kaiming-uniform, up at zero, as in Hu et al. and all common trainers."""

    def __init__(self, layer, rank: int, alpha: float, generator: torch.Generator, device: torch.device):
        out, *rest = layer.weight.shape
        down = torch.empty(rank, *rest)
        torch.nn.init.kaiming_uniform_(down, a=5**0.5, generator=generator)
        self.up = torch.nn.Parameter(torch.zeros(out, rank, *[1] * (len(rest) - 1), device=device))
        self.down = torch.nn.Parameter(down.to(device))
        self.parameters = {"lora_up.weight": self.up, "lora_down.weight": self.down}
        self.layer, self.alpha, self.scale = layer, alpha, alpha / rank

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        return _add_low_rank(self.layer, x, y, self.down, self.up, self.scale)


class _DoRA(_LoRA):
    """W' = m * (W + s up down) / |W + s up down|, the norm taken for each INPUT channel: y = (W + s up down)(c x), c = m / |...|.

    DoRA files may carry the magnitude of inputs or of outputs; the host's loader takes the output norm from W alone, which is no DoRA,
    so inputs it is (LyCORIS's `wd_on_output=False`). The norm is constant in the backward pass (DoRA, section 4.3).
    """

    def __init__(self, layer, rank, alpha, generator, device):
        super().__init__(layer, rank, alpha, generator, device)
        self.magnitude = torch.nn.Parameter(self._norm())
        self.parameters["dora_scale"] = self.magnitude

    def input(self, x: Tensor) -> Tensor:
        scale = self.magnitude / self._norm()
        return (x * (scale if scale.ndim == 4 else scale[0])).to(x.dtype)

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """[1, in] or [1, in, 1, 1]: the length of each input channel's weights; never zero."""
        weight = host.computed_weight(self.layer, self.up.device)
        with torch.autocast(weight.device.type, enabled=False):
            weight = weight + self.scale * (self.up.flatten(1) @ self.down.flatten(1)).view_as(weight)
        dims = [dim for dim in range(weight.ndim) if dim != 1]
        return torch.linalg.vector_norm(weight, dim=dims, keepdim=True) + torch.finfo(torch.float32).eps


class _LoHa:
    """W' = W + s (a1 b1) * (a2 b2), element by element: of rank up to rank squared (FedPara; LyCORIS).

    Its two products are one LoRA of rank^2: (a1 . a2)(b1 . b2) with the products of all pairs of columns, of rows. Where that costs
    more than the difference itself, the difference is made. Starts as LyCORIS does (the host's own start gives means for deviations).
    """

    def __init__(self, layer, rank: int, alpha: float, generator: torch.Generator, device: torch.device):
        self.adapter = host.create("LoHa", layer, rank, alpha, seed=0)
        for value, deviation in ((self.adapter.hada_w1_a, 0.1), (self.adapter.hada_w2_a, 1.0), (self.adapter.hada_w2_b, 1.0)):
            torch.nn.init.normal_(value, std=deviation, generator=generator)
        self.adapter.to(device)
        self.parameters = _trained(self.adapter)
        self.layer, self.alpha, self.rank = layer, alpha, rank
        shape = layer.weight.shape
        self.factored = rank**2 * (shape[0] + shape[1:].numel()) < shape.numel()

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        a1, b1, a2, b2 = (self.parameters[name] for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))
        shape, scale = self.layer.weight.shape, self.alpha / self.rank
        if self.factored:
            up = (a1[:, :, None] * a2[:, None, :]).view(shape[0], -1, *[1] * (len(shape) - 2))
            down = (b1[:, None, :] * b2[None, :, :]).view(-1, *shape[1:])
            return _add_low_rank(self.layer, x, y, down, up, scale)
        with torch.autocast(x.device.type, enabled=False):
            difference = self.adapter(a1.new_zeros(()).expand(shape))
        return y + _linear(self.layer, x, difference).to(y.dtype)


class _LoKr:
    """W' = W + w1 (x) w2, the host's own: its two factors are applied to the activations one after the other."""

    def __init__(self, layer, rank: int, alpha: float, generator: torch.Generator, device: torch.device):
        self.adapter = host.create("LoKr", layer, rank, alpha, _draw(generator)).to(device)
        self.parameters = _trained(self.adapter)
        self.alpha = alpha

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        return y + self.adapter.h(x if torch.is_autocast_enabled(x.device.type) else x.float(), y).to(y.dtype)


class _OFT:
    """W' = R W with a block-diagonal rotation R, the host's own (Cayley transform of a skew-symmetric generator, within `alpha`).

    On activations y = R (W x) + bias. The host's bypass form rotates the bias too, which its file form does not: this one does not.
    """

    def __init__(self, layer, rank: int, alpha: float, generator: torch.Generator, device: torch.device):
        self.adapter = host.create("OFT", layer, rank, alpha, _draw(generator)).to(device)
        self.parameters = _trained(self.adapter)
        self.layer, self.alpha = layer, alpha

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        count, size, _ = self.adapter.oft_blocks.shape
        with torch.autocast(x.device.type, enabled=False):
            one = torch.eye(size, device=y.device)
            turn = self.adapter(one.repeat(count, 1)).view(count, size, size) - one  # R - 1 of each block: small, so exact in half precision too
        bias = self.layer.bias
        if bias is None:
            return y + _turn(turn.to(y.dtype), y, self.layer.weight.ndim)
        bias = bias.detach().to(y.device, y.dtype).view(-1, *[1] * (self.layer.weight.ndim - 2))
        return y + _turn(turn.to(y.dtype), y - bias, self.layer.weight.ndim)


_SIDES = {"LoRA": _LoRA, "DoRA": _DoRA, "LoHa": _LoHa, "LoKr": _LoKr, "OFT": _OFT}


def _trained(adapter: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: value for name, value in adapter.named_parameters() if value.requires_grad}


def _draw(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def _add_low_rank(layer, x: Tensor, y: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """y + scale * up(down(x)) in y's dtype: two thin products, and no copy of y besides the result."""
    hidden = _linear(layer, x, down).to(y.dtype)
    if down.ndim == 4:
        return y + scale * functional.conv2d(hidden, up.to(y.dtype))
    return torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), up.to(y.dtype).t(), alpha=scale).view(y.shape)


def _linear(layer, x: Tensor, weight: Tensor) -> Tensor:
    """`layer` with another weight and no bias: [..., in] -> [..., out], or a convolution with the layer's stride and padding."""
    if weight.ndim == 4:
        return functional.conv2d(x, weight.to(x.dtype), None, layer.stride, layer.padding, layer.dilation, layer.groups)
    return functional.linear(x, weight.to(x.dtype))


def _turn(turn: Tensor, y: Tensor, ndim: int) -> Tensor:
    """The blocks `turn` [count, size, size] on y's channels: the last of [..., out], the second of [n, out, h, w]."""
    if ndim == 4:
        return torch.einsum("kmn,bknhw->bkmhw", turn, y.unflatten(1, turn.shape[:2])).flatten(1, 2)
    return torch.einsum("kmn,...kn->...km", turn, y.unflatten(-1, turn.shape[:2])).flatten(-2)
