"""The weak model of a pair, and its place while sampling: inside the tuned model's layers, or as a second module."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import torch

from ..host import adapters, forwards, token_rows
from ..host import patcher as host_patcher
from .difference import Change, Difference, compare, multiplied, shared_patches
from .layers import Correction, SecondDelta, SecondWeight, Weakened
from .parts import factored
from .rows import Rows
from .schedule import Schedule

log = logging.getLogger(__name__)


class WeakModel:
    """The weights theta_w = omega theta' + (1 - omega) theta between `base` and `tuned`, for any pair of one architecture.

    Raises ValueError for a pair that does not fit. Nothing is computed or allocated before `installed`.
    """

    def __init__(self, tuned, base, schedule: Schedule):
        self.tuned, self.base, self.schedule = tuned, base, schedule
        with host_patcher.without_injections(tuned), host_patcher.without_injections(base):  # an earlier run may have left them in
            self.token_ratios = token_rows.ratios(tuned, base)
            self.difference: Difference = compare(tuned, base, bool(self.token_ratios))
            self.separate = self.difference.separate and schedule.constant
            self.second = host_patcher.interpolated_clone(base, tuned, list(self.difference.changes), schedule.omega) if self.separate else None
            if not self.separate:
                self._refuse_unreachable()
            elif token_rows.differences(tuned):
                raise ValueError(
                    "`model` and `base_model` are two separate checkpoints, and `model` carries a concept that acts on its token's rows: guidance cannot have both. "
                    "Load the concept on the checkpoint of `base_model`, or use plain CFG."
                )
        self._tuned_patches, self._base_patches = host_patcher.weight_patches(tuned), host_patcher.weight_patches(base)
        self._multiplied: dict[str, tuple | None] = {}  # cache of the terms of DoRA and OFT
        self.told = False

    def token_shares(self, omega: float) -> dict[str, float]:
        """Tag -> the weak model's share of a difference that acts on its token's rows (`host.token_rows`): omega theta' + (1 - omega) theta."""
        return {tag: omega + (1 - omega) * ratio for tag, ratio in self.token_ratios.items()}

    def paths(self) -> list[str]:
        """The layers that differ, as paths in the host's network."""
        return list(dict.fromkeys(key.removeprefix(host_patcher.DIFFUSION).rpartition(".")[0] for key in self.difference.changes))

    @contextmanager
    def installed(self, patcher, rows: Rows, moving: bool):
        """Within it, the module of `patcher` (a clone of `tuned`) computes the weak `rows` with the weak weights.

        moving  the tuned weights may change during the run (conditioning hooks)
        Afterwards the module is as before, also after an exception.
        """
        with host_patcher.without_injections(patcher):
            built = [
                (path, layer := host_patcher.weight_owner(patcher, path + ".weight")[0], self._forward(patcher, layer, changes, rows, moving))
                for path, changes in self._by_layer(patcher).items()
            ]
        with forwards.replaced(built, "Personalization Guidance cannot put the weak weight under it"):
            yield [forward for _, _, forward in built]

    def _by_layer(self, patcher) -> dict[str, dict[str, Change]]:
        """Layer path -> parameter name -> change, for the current patches of `patcher` (later nodes may have added some, to both sides)."""
        now = host_patcher.weight_patches(patcher)
        layers: dict[str, dict[str, Change]] = {}
        for key, change in self.difference.changes.items():
            later = now.get(key, [])[len(self._tuned_patches.get(key, [])) :]
            if later and (change.own or any(adapters.additive_term(patch, host_patcher.pristine(patcher, key).shape) is None for patch in later)):
                change = Change(key, None, change.kinds)
            path, _, name = key.rpartition(".")
            layers.setdefault(path, {})[name] = change
        return layers

    def _forward(self, patcher, layer, changes: dict[str, Change], rows: Rows, moving: bool) -> Weakened:
        """The forward that the layer gets for the run."""
        original = forwards.host_forward(layer.forward)
        device = host_patcher.load_device(patcher)
        weight, bias = changes.get("weight"), changes.get("bias")
        terms = self._terms(weight, device, moving) if weight else ()
        if terms is not None and (bias is None or bias.terms is not None) and (weight or isinstance(layer, torch.nn.Linear)):
            place = {"device": device, "dtype": host_patcher.compute_dtype(patcher)}
            parts = factored(layer, terms, host_patcher.pristine(patcher, weight.key).shape, place) if weight else []
            if parts is not None:
                added = _of_bias(bias, device) if bias else None
                tuned = self._patched(patcher, layer, f"{weight.key.rpartition('.')[0]}.bias", device) if weight else None
                return Correction(rows, original, layer, parts, added, tuned)
        packed = any(host_patcher.is_packed(patcher, change.key) for change in changes.values())  # its values cannot be read, only the difference
        delta = moving or not self.schedule.constant or packed
        values: dict[str, torch.Tensor | None] = {name: self._value(patcher, changes[name], delta, device) for name in changes}
        for name in {"weight", "bias"} - values.keys():
            values[name] = self._unchanged(patcher, layer, next(iter(changes.values())).key, name, delta, device)
        second = host_patcher.twin(layer, values["weight"], values["bias"])
        return (SecondDelta if delta else SecondWeight)(rows, original, layer, second)

    def _terms(self, change: Change, device, moving: bool):
        """The change as factored terms, or None. DoRA and OFT terms are derived from the tuned weight, so they are invalid while hooks modify it."""
        if change.terms is not None or not change.own or moving:
            return change.terms
        if change.key not in self._multiplied:
            patches = self._tuned_patches[change.key]
            shape = host_patcher.pristine(self.tuned, change.key).shape
            self._multiplied[change.key] = multiplied(
                change.own, shape, lambda i: host_patcher.patched(self.tuned, change.key, patches[: change.below + i], device)
            )
        return self._multiplied[change.key]

    def _value(self, patcher, change: Change, delta: bool, device) -> torch.Tensor:
        """W_w of one weight, or A if `delta`. Computed in float32, stored in the weight's own dtype. Raises ValueError for a packed weight that is needed."""
        key, omega = change.key, self.schedule.omega
        mine, theirs = self._tuned_patches.get(key, []), self._base_patches.get(key, [])
        if delta and change.terms is not None:  # A does not depend on the weight
            nothing, shared = torch.zeros(host_patcher.pristine(patcher, key).shape, dtype=torch.float32, device=device), shared_patches(mine, theirs)
            value = host_patcher.patched(self.tuned, key, mine[shared:], device, start=nothing.clone())
            value = value - host_patcher.patched(self.base, key, theirs[shared:], device, start=nothing)
            return value.to(host_patcher.storage_dtype(patcher, key))
        tuned = host_patcher.patched(self.tuned, key, mine, device)
        base = _like(host_patcher.patched(self.base, key, theirs, device), tuned)
        if delta:
            value = tuned.sub_(base)
        else:
            value = base.lerp_(tuned, omega)
            later = host_patcher.weight_patches(patcher).get(key, [])[len(mine) :]
            value = host_patcher.patched(patcher, key, later, device, start=value)
        return value.to(host_patcher.storage_dtype(patcher, key))

    def _unchanged(self, patcher, layer, key: str, name: str, delta: bool, device) -> torch.Tensor | None:
        """An equal parameter for the weak rows' layer: the tuned one, or zero if only the difference counts."""
        key = f"{key.rpartition('.')[0]}.{name}"
        if layer._parameters.get(name) is None:
            return None
        value = torch.zeros(host_patcher.pristine(patcher, key).shape, device=device) if delta else self._patched(patcher, layer, key, device)
        assert value is not None  # the layer has it, as asked above
        return value.to(host_patcher.storage_dtype(patcher, key))

    def _patched(self, patcher, layer, key: str, device) -> torch.Tensor | None:
        """A parameter of the layer with all current patches, in float32; None if the layer has no such parameter."""
        if layer._parameters.get(key.rpartition(".")[2]) is None:
            return None
        return host_patcher.patched(patcher, key, host_patcher.weight_patches(patcher).get(key, []), device)

    def _refuse_unreachable(self) -> None:
        for key, change in self.difference.changes.items():
            if change.terms is None and (host_patcher.is_packed(self.tuned, key) or host_patcher.is_packed(self.base, key)):
                raise ValueError(
                    f"The difference between `model` and `base_model` ({', '.join(change.kinds)}) needs the values of a weight that is stored in a packed form (a GGUF file), "
                    "which only its own loader can read. Load the models from .safetensors files, or use a LoRA that is neither a DoRA nor an OFT. "
                    f"The weight is {key!r}."
                )
            layer, name = host_patcher.weight_owner(self.tuned, key)
            if name not in ("weight", "bias") or not host_patcher.is_rowwise(layer):
                raise ValueError(
                    "The pair differs in a weight that is used outside an ordinary layer, so its rows cannot be told apart in one batch. "
                    f"Save the tuned model as a checkpoint and load it with its own loader: two separate models work with any difference, at a constant omega. The weight is {key!r}."
                )

    def tell(self, layers, size: int, apart: str | None) -> None:
        """Log once how the weak model is made and what it costs. apart: why each side has its own forward, if it has."""
        if not self.told:
            self.told = True
            log.info("%s", describe(self, layers, size, apart))


def describe(weak: WeakModel, layers, size: int, apart: str | None = None) -> str:
    """One line: how the weak model is made, and its cost."""
    schedule = weak.schedule
    omega = f"{schedule.omega:g}" if schedule.constant else f"{schedule.omega:g} to {schedule.omega_end:g}"
    megabytes = f"{size / 2**20:,.1f} MB"
    if weak.separate:
        return f"Personalization Guidance (omega {omega}): most weights differ, so the weak model is a second model beside the tuned one: {megabytes} more, two forwards a step."
    kinds = ", ".join(dict.fromkeys(kind for change in weak.difference.changes.values() for kind in change.kinds)) or "token rows"
    corrected = sum(isinstance(layer, Correction) for layer in layers)
    ways = [
        "the concept's differences scaled on its token's rows" if weak.token_ratios else "",
        f"{corrected} layers corrected by the adapter" if corrected else "",
        f"{len(layers) - corrected} with a second weight" if len(layers) > corrected else "",
    ]
    forwards = f"each side in a forward of its own, because {apart}" if apart else "in one batched forward a step"
    return f"Personalization Guidance (omega {omega}) over {kinds}: {' and '.join(way for way in ways if way)}, {forwards}; {megabytes} beside the model."


def _of_bias(bias: Change, device) -> torch.Tensor:
    """The difference of a bias. A vector has no factors, so each of its terms is the difference itself."""
    total = torch.zeros((), device=device)
    for factor, term in bias.terms or ():
        assert isinstance(term, adapters.Full), term
        total = total + term.value.to(device, torch.float32) * factor
    return total


def _like(base: torch.Tensor, tuned: torch.Tensor) -> torch.Tensor:
    if base.shape == tuned.shape:
        return base
    padded = torch.zeros_like(tuned)
    padded[tuple(slice(0, n) for n in base.shape)] = base
    return padded
