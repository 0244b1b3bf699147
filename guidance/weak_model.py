"""What the weak model of a pair is, and how it stands beside the tuned one while sampling: inside its layers, or as a second module."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

from ..host import adapters
from ..host import patcher as host
from ..host.adapters import Full
from ..host.types import Model
from .difference import Change, Difference, compare, multiplied, shared_patches
from .layers import Correction, SecondDelta, SecondWeight, Weakened
from .parts import factored
from .rows import Rows
from .schedule import Schedule

log = logging.getLogger(__name__)


class WeakModel:
    """The weights between `base` and `tuned` (theta_w = omega theta' + (1 - omega) theta) for any pair of one architecture.

    Raises ValueError for a pair that does not fit. Nothing is computed or allocated before `installed`.
    """

    def __init__(self, tuned: Model, base: Model, schedule: Schedule):
        self.tuned, self.base, self.schedule = tuned, base, schedule
        with host.without_injections(tuned), host.without_injections(base):  # an earlier run may have left them in
            self.difference: Difference = compare(tuned, base)
            self.separate = self.difference.separate and schedule.constant
            self.second = host.interpolated_clone(base, tuned, list(self.difference.changes), schedule.omega) if self.separate else None
            if not self.separate:
                self._refuse_unreachable()
        self._tuned_patches, self._base_patches = host.weight_patches(tuned), host.weight_patches(base)
        self._multiplied: dict[str, tuple | None] = {}  # the terms of DoRA and OFT, once read
        self.told = False

    def paths(self) -> list[str]:
        """The layers that differ, as paths in the host's network."""
        return list(dict.fromkeys(key.removeprefix(host.DIFFUSION).rpartition(".")[0] for key in self.difference.changes))

    @contextmanager
    def installed(self, patcher: Model, rows: Rows, moving: bool) -> Iterator[list[Weakened]]:
        """While open, the module of `patcher` (a clone of `tuned`) computes the rows that `rows` names with the weak weights.

        `moving`: the tuned weights may change during the run (conditioning hooks). Afterwards the module is as before, whatever happened.
        """
        placed: list[tuple[torch.nn.Module, Any, Weakened]] = []
        try:
            with host.without_injections(patcher):
                built = [
                    (path, layer := host.owner(patcher, path + ".weight")[0], self._forward(patcher, layer, changes, rows, moving))
                    for path, changes in self._by_layer(patcher).items()
                ]
            for path, layer, forward in built:
                if not host.has_own_forward(layer, _bare(layer.forward)):
                    raise RuntimeError(
                        "Another node replaced what a layer computes that the tuning changes, so Personalization Guidance cannot put the weak weight under it. "
                        f"Take that node out, or use plain CFG. The layer is {path!r}."
                    )
                placed.append((layer, layer.__dict__.get("forward"), forward))
                layer.forward = forward
            layers = [forward for _, _, forward in built]
            yield layers
        finally:
            for layer, before, forward in reversed(placed):
                if layer.__dict__.get("forward") is not forward:
                    forward.retire()  # another pack put its own on top during the run, and will put ours back when it leaves
                elif before is None:
                    del layer.forward
                else:
                    layer.forward = before

    def _by_layer(self, patcher: Model) -> dict[str, dict[str, Change]]:
        """Layer path -> parameter name -> change, for the patches that `patcher` has now (nodes after ours may have added some, to both sides)."""
        now = host.weight_patches(patcher)
        layers: dict[str, dict[str, Change]] = {}
        for key, change in self.difference.changes.items():
            later = now.get(key, [])[len(self._tuned_patches.get(key, [])) :]
            if later and (change.own or any(adapters.additive(patch, host.pristine(patcher, key).shape) is None for patch in later)):
                change = Change(key, None, change.kinds)
            path, _, name = key.rpartition(".")
            layers.setdefault(path, {})[name] = change
        return layers

    def _forward(self, patcher: Model, layer, changes: dict[str, Change], rows: Rows, moving: bool) -> Weakened:
        """The layer's forward for the run."""
        original = _bare(layer.forward)
        device = host.load_device(patcher)
        weight, bias = changes.get("weight"), changes.get("bias")
        terms = self._terms(weight, device, moving) if weight else ()
        if terms is not None and (bias is None or bias.terms is not None) and (weight or isinstance(layer, torch.nn.Linear)):
            place = {"device": device, "dtype": host.compute_dtype(patcher)}
            parts = factored(layer, terms, host.pristine(patcher, weight.key).shape, place) if weight else []
            if parts is not None:
                added = _sum_of(bias, device) if bias else None
                tuned = self._patched(patcher, layer, f"{weight.key.rpartition('.')[0]}.bias", device) if weight else None
                return Correction(rows, original, layer, parts, added, tuned)
        packed = any(host.is_packed(patcher, change.key) for change in changes.values())  # only the difference is at hand then
        delta = moving or not self.schedule.constant or packed
        values: dict[str, torch.Tensor | None] = {name: self._value(patcher, changes[name], delta, device) for name in changes}
        for name in {"weight", "bias"} - values.keys():
            values[name] = self._unchanged(patcher, layer, next(iter(changes.values())).key, name, delta, device)
        second = host.twin(layer, values["weight"], values["bias"])
        return (SecondDelta if delta else SecondWeight)(rows, original, layer, second)

    def _terms(self, change: Change, device, moving: bool):
        """The change as factored terms, or None. DoRA and OFT terms are derived from the tuned weight, so they are invalid while hooks modify it."""
        if change.terms is not None or not change.own or moving:
            return change.terms
        if change.key not in self._multiplied:
            patches = self._tuned_patches[change.key]
            shape = host.pristine(self.tuned, change.key).shape
            self._multiplied[change.key] = multiplied(change.own, shape, lambda i: host.patched(self.tuned, change.key, patches[: change.below + i], device))
        return self._multiplied[change.key]

    def _value(self, patcher: Model, change: Change, delta: bool, device) -> torch.Tensor:
        """W_w of one weight, or A where `delta`. Computed in float32, kept in the weight's own dtype. Raises ValueError for a packed weight that is needed."""
        key, omega = change.key, self.schedule.omega
        mine, theirs = self._tuned_patches.get(key, []), self._base_patches.get(key, [])
        if delta and change.terms is not None:  # A does not depend on the weight
            nothing, shared = torch.zeros(host.pristine(patcher, key).shape, dtype=torch.float32, device=device), shared_patches(mine, theirs)
            value = host.patched(self.tuned, key, mine[shared:], device, start=nothing.clone())
            value = value - host.patched(self.base, key, theirs[shared:], device, start=nothing)
            return value.to(host.storage_dtype(patcher, key))
        tuned = host.patched(self.tuned, key, mine, device)
        base = _like(host.patched(self.base, key, theirs, device), tuned)
        if delta:
            value = tuned.sub_(base)
        else:
            value = base.lerp_(tuned, omega)
            later = host.weight_patches(patcher).get(key, [])[len(mine) :]
            value = host.patched(patcher, key, later, device, start=value)
        return value.to(host.storage_dtype(patcher, key))

    def _unchanged(self, patcher: Model, layer, key: str, name: str, delta: bool, device) -> torch.Tensor | None:
        """The parameter in which the two do not differ, for the weak rows' layer: as tuned, or zero where only the difference counts."""
        key = f"{key.rpartition('.')[0]}.{name}"
        if layer._parameters.get(name) is None:
            return None
        value = torch.zeros(host.pristine(patcher, key).shape, device=device) if delta else self._patched(patcher, layer, key, device)
        return None if value is None else value.to(host.storage_dtype(patcher, key))

    def _patched(self, patcher: Model, layer, key: str, device) -> torch.Tensor | None:
        """A parameter of the layer with all patches that it has now, in float32; None where the layer has none of that name."""
        if layer._parameters.get(key.rpartition(".")[2]) is None:
            return None
        return host.patched(patcher, key, host.weight_patches(patcher).get(key, []), device)

    def _refuse_unreachable(self) -> None:
        for key, change in self.difference.changes.items():
            if change.terms is None and (host.is_packed(self.tuned, key) or host.is_packed(self.base, key)):
                raise ValueError(
                    f"The difference between `model` and `base_model` ({', '.join(change.kinds)}) needs the values of a weight that is stored in a packed form (a GGUF file), "
                    "which only its own loader can read. Load the models from .safetensors files, or use a LoRA that is neither a DoRA nor an OFT. "
                    f"The weight is {key!r}."
                )
            layer, name = host.owner(self.tuned, key)
            if name not in ("weight", "bias") or not host.is_rowwise(layer):
                raise ValueError(
                    f"The pair differs in {key!r}, a weight that is used outside of an ordinary layer, so its rows cannot be told apart in one batch. "
                    "Save the tuned model as a checkpoint and load it with its own loader: two separate models work with any difference, at a constant omega."
                )

    def tell(self, layers, size: int, apart: str | None) -> None:
        """Log once how the weak model is made and what it costs. `apart`: why each side has a forward of its own, if it has."""
        if not self.told:
            self.told = True
            log.info("%s", describe(self, layers, size, apart))


def _sum_of(bias: Change, device) -> torch.Tensor:
    """The change of a bias. A vector has no factors, so its terms are whole."""
    values = [term.value.to(device, torch.float32) * factor for factor, term in cast("tuple[tuple[float, Full], ...]", bias.terms)]
    return sum(values[1:], values[0])


def describe(weak: WeakModel, layers, size: int, apart: str | None = None) -> str:
    """One line: how the weak model is made, and its price."""
    schedule = weak.schedule
    omega = f"{schedule.omega:g}" if schedule.constant else f"{schedule.omega:g} to {schedule.omega_end:g}"
    megabytes = f"{size / 2**20:,.1f} MB"
    if weak.separate:
        return f"Personalization Guidance (omega {omega}): most weights differ, so the weak model is a second model beside the tuned one: {megabytes} more, two forwards a step."
    kinds = ", ".join(dict.fromkeys(kind for change in weak.difference.changes.values() for kind in change.kinds))
    corrected = sum(isinstance(layer, Correction) for layer in layers)
    ways = [
        f"{corrected} layers corrected by the adapter" if corrected else "",
        f"{len(layers) - corrected} with a second weight" if len(layers) > corrected else "",
    ]
    forwards = f"each side in a forward of its own, because {apart}" if apart else "in one batched forward a step"
    return f"Personalization Guidance (omega {omega}) over {kinds}: {' and '.join(way for way in ways if way)}, {forwards}; {megabytes} beside the model."


def _bare(forward):
    """The host's forward beneath one that we installed for an outer sampling run."""
    while isinstance(forward, Weakened):
        forward = forward.original
    return forward


def _like(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    if base.shape == tuned.shape:
        return base
    padded = torch.zeros_like(tuned)
    padded[tuple(slice(0, n) for n in base.shape)] = base
    return padded
