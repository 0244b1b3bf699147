"""Replacing the forward of layers for one sampling run, and leaving no trace after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from .patcher import has_own_forward


class Replaced:
    """A layer's forward for one run. `original`: the forward below it, the host's or another one of ours.

    on_top  it adds to the output of whatever computes the layer, so others of the same run are put below it
    """

    on_top = False

    def __init__(self, original):
        self.original, self.retired = original, False

    def __call__(self, x, *args, **kwargs):
        raise NotImplementedError

    def retire(self) -> None:
        """The run is over, but another pack still holds this forward: from now on it only calls the one below, and keeps no tensors."""
        original = self.original
        vars(self).clear()
        self.original, self.retired = original, True

    def below(self):
        """The forward that was there before."""
        return self.original


def host_forward(forward):
    """The host's forward under ours, of this run and of outer ones."""
    while isinstance(forward, Replaced):
        forward = forward.below()
    return forward


@contextmanager
def replaced(forwards: Iterable[tuple[str, torch.nn.Module, Replaced]], what: str) -> Iterator[None]:
    """Within it each layer has its new forward; afterwards the old one, also after an exception.

    forwards  (path for messages, layer, its new forward)
    what      the subject of the message if another node has replaced the forward of a layer: RuntimeError
    """
    placed: list[tuple[object, str, object, Replaced]] = []
    try:
        for path, layer, forward in forwards:
            if not has_own_forward(layer, host_forward(layer.forward)):
                raise RuntimeError(f"Another node replaced the forward of a tuned layer, so {what}. Remove that node, or use plain CFG. The layer is {path!r}.")
            above = layer.forward if getattr(layer.forward, "on_top", False) and not forward.on_top else None
            owner, name = (layer, "forward") if above is None else (above, "original")
            placed.append((owner, name, vars(owner).get(name), forward))
            setattr(owner, name, forward)
        yield
    finally:
        for owner, name, before, forward in reversed(placed):
            if vars(owner).get(name) is not forward:
                forward.retire()  # another pack wrapped it during the run, and will put it back when it leaves
            elif before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)
