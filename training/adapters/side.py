"""One small module beside each target layer: y = W x + side(x). The frame of all adapters but the full-rank one.

A side works on activations, so that no gradient of a whole weight is ever made. Its parameters are float32 and are cast to the
activations' dtype at each call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...host import text_rows
from .base import Hooked
from .kinds import side_class
from .layers import target_layers

Layer = torch.nn.Linear | torch.nn.Conv2d


class Side:
    """What one layer gets. A subclass sets `parameters` in its constructor and implements `output`.

    parameters  name in the file (`lora_up.weight`) -> float32 parameter; at the start they change nothing
    alpha       written to the file beside them; None where the kind has none
    """

    parameters: dict[str, torch.nn.Parameter]
    alpha: float | None = None
    layer: Layer

    def __init__(self, layer: Layer, rank: int, alpha: float, generator: torch.Generator, device: torch.device):
        raise NotImplementedError

    def input(self, x: Tensor) -> Tensor:
        """The layer's input, changed before the layer sees it."""
        return x

    def output(self, x: Tensor, y: Tensor) -> Tensor:
        """The layer's output `y` for the input `x`, with what was learned added."""
        raise NotImplementedError

    def saved(self) -> dict[str, Tensor]:
        """The entries of a LoRA file for this layer, without the layer's name. They must be readable by core's LoRA loader."""
        entries = {name: value.detach().float().cpu().clone() for name, value in self.parameters.items()}
        return entries if self.alpha is None else {**entries, "alpha": torch.tensor(float(self.alpha))}


class SideAdapter(Hooked):
    """A `Side` for each of `layers`, held by forward hooks. `parameters` are named `<layer>.<name in the file>`."""

    def __init__(
        self,
        layers: dict[str, torch.nn.Module],
        kind: str,
        rank: int,
        alpha: float,
        seed: int = 0,
        prefix: str = "diffusion_model.",
        device: torch.device | None = None,
        limited: Callable[[str], bool] | None = None,
    ):
        generator = torch.Generator().manual_seed(seed)
        make = side_class(kind)
        super().__init__()
        self.kind, self._prefix = kind, prefix
        self._sides: dict[str, Side] = {name: make(layer, rank, alpha, generator, device or layer.weight.device) for name, layer in layers.items()}
        self.parameters = {f"{name}.{key}": value for name, side in self._sides.items() for key, value in side.parameters.items()}
        for name, side in self._sides.items():
            on_rows = limited is not None and limited(name)  # `_output_of_rows` changes the input itself
            self._hooks.append(layers[name].register_forward_hook(functools.partial(self._output_of_rows if on_rows else self._output, side)))
            if type(side).input is not Side.input and not on_rows:
                self._hooks.append(layers[name].register_forward_pre_hook(functools.partial(self._input, side)))

    def lora(self) -> dict[str, Tensor]:
        return {f"{self._prefix}{name}.{key}": value for name, side in self._sides.items() for key, value in side.saved().items()}

    def _input(self, side: Side, layer, arguments):
        return (side.input(arguments[0]), *arguments[1:]) if self._enabled else None

    def _output(self, side: Side, layer, arguments, output):
        return side.output(arguments[0], output) if self._enabled else None

    def _output_of_rows(self, side: Side, layer, arguments, output):
        if not self._enabled:
            return None
        if type(side).input is Side.input:
            return on_token_rows(arguments[0], output, side.output)

        def of_changed(x, _):
            x = side.input(x)
            return side.output(x, layer.forward(x))  # the forward itself, without the hooks

        return on_token_rows(arguments[0], output, of_changed)


def attach_adapter(
    network: torch.nn.Module,
    kind: str,
    rank: int,
    alpha: float,
    targets: str = "attention",
    seed: int = 0,
    prefix: str = "diffusion_model.",
    device: torch.device | None = None,
    patterns: dict[str, tuple[str, ...]] | None = None,
    limited: Callable[[str], bool] | None = None,
) -> SideAdapter:
    """Put an adapter of `kind` on the layers of `network` (a training copy) that `targets` names (see `layers.target_layers`).

    kind    a key of `kinds.KINDS`, which says what `rank` and `alpha` mean for it
    seed    alone decides the start, whatever the global random state is
    prefix  of the names in files: "diffusion_model." for the denoising network, "text_encoders." for `TrainableText.model`
    device  of the parameters; None = that of the layers
    patterns  see `layers.target_layers`
    limited   layer -> does it act on the token's rows of its input alone? None = no layer does
    At the start the network computes what it did before. Raises ValueError for an unknown kind, a rank below 1, or unknown targets.
    """
    if rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1, usually 4 to 64.")
    return SideAdapter(target_layers(network, targets, patterns), kind, rank, alpha, seed, prefix, device, limited)


def on_token_rows(x: Tensor, y: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`y` [B, rows, out] with `change(x_rows, y_rows)` in place of its token rows, for text features `x` [B, rows, width] that know them."""
    rows = text_rows.marked(x)
    if not len(rows):
        return y
    flat = y.flatten(0, -2)
    return flat.index_copy(0, rows, change(x.flatten(0, -2)[rows], flat[rows]).to(y.dtype)).view_as(y)


def add_low_rank(layer: Layer, x: Tensor, y: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """y + scale * up(down(x)) in y's dtype: two thin products, and no copy of y besides the result."""
    hidden = apply_weight(layer, x, down).to(y.dtype)
    if down.ndim == 4:
        return y + scale * functional.conv2d(hidden, up.to(y.dtype))
    return torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), up.to(y.dtype).t(), alpha=scale).view(y.shape)


def apply_weight(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """`layer` with another weight and no bias: [..., in] -> [..., out], or a convolution with the layer's stride and padding."""
    if weight.ndim == 4:
        convolution: Any = layer
        return functional.conv2d(x, weight.to(x.dtype), None, convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    return functional.linear(x, weight.to(x.dtype))


def draw_seed(generator: torch.Generator) -> int:
    """The next seed from `generator`, for code that takes a seed instead of a generator."""
    return int(torch.randint(2**62, (), generator=generator))
