"""Digests of what a result depends on: weights, patches on them, settings. Equal digests mean equal results."""

from __future__ import annotations

import functools
import hashlib
import types
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from comfy.model_patcher import ModelPatcher
from comfy.quant_ops import QuantizedTensor

from .patcher import DIFFUSION, pristine

# SD 1.x has no text projection in its files and does not use it, so the host leaves this weight uninitialized. Where it is used, the rest
# of the encoder distinguishes the models.
UNINITIALIZED = "clip_l.transformer.text_projection.weight"


def content_hash(*parts) -> str:
    """SHA-256 (hexadecimal) of the content of `parts`: numbers, texts, tensors, containers of these, and the host's model patchers.

    A patcher counts by its unpatched weights, the patches on them, and its options. Functions and other objects count by their names and
    attributes. Values that differ between runs without effect (memory addresses, uuids, devices) do not count.
    """
    return _Digest().of(parts).hex()


def model_hash(patcher) -> str:
    """SHA-256 (hexadecimal) of the diffusion model's unpatched weights. The same file loaded in another precision has another digest."""
    return _sha(*_weights(patcher, sorted(DIFFUSION + key for key in patcher.model.diffusion_model.state_dict(keep_vars=True)))).hex()


class _Digest:
    def __init__(self):
        self.known: dict[int, bytes] = {}  # by id(): each object once, and no endless loop through circular references
        self.alive: list = []  # keeps the objects alive, since an id may be reused afterwards

    def of(self, value) -> bytes:
        if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype)):
            return _sha(f"{type(value).__name__} {value!r}".encode())
        if isinstance(value, (uuid.UUID, torch.device)):
            return _sha(type(value).__name__.encode())
        if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
            return _sha(_qualified_name(value).encode())
        if id(value) not in self.known:
            self.known[id(value)] = b"itself"
            self.alive.append(value)
            self.known[id(value)] = self._of_object(value)
        return self.known[id(value)]

    def _of_object(self, value) -> bytes:
        if isinstance(value, torch.Tensor):
            return _tensor(value)
        if isinstance(value, ModelPatcher):
            return self._patcher(value)
        if isinstance(value, Mapping):
            return _sha(*sorted(self.of(key) + self.of(entry) for key, entry in value.items()))
        if isinstance(value, (set, frozenset)):
            return _sha(*sorted(map(self.of, value)))
        if isinstance(value, (list, tuple)):
            return _sha(*map(self.of, value))
        if isinstance(value, torch.nn.Module):
            plain = {name: entry for name, entry in vars(value).items() if isinstance(entry, (bool, int, float, str))}
            return _sha(_qualified_name(type(value)).encode(), self.of(plain), self.of(value.state_dict()))
        if isinstance(value, types.MethodType):
            return _sha(self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, functools.partial):
            return _sha(self.of(value.func), self.of(value.args), self.of(value.keywords))
        if isinstance(value, types.FunctionType):
            closure = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            return _sha(_qualified_name(value).encode(), self.of(value.__defaults__), self.of(closure))
        return _sha(_qualified_name(type(value)).encode(), self.of(getattr(value, "__dict__", {})))

    def _patcher(self, patcher: ModelPatcher) -> bytes:
        keys = sorted(key for key in patcher.model.state_dict(keep_vars=True) if not key.endswith(UNINITIALIZED))
        weights = _weights(patcher, keys)
        changes = (
            patcher.patches,
            patcher.object_patches,
            patcher.weight_wrapper_patches,
            patcher.injections,
            patcher.hook_patches,
            patcher.forced_hooks,
            patcher.wrappers,
            patcher.model_options,
        )
        return _sha(_qualified_name(type(patcher.model)).encode(), *weights, *map(self.of, changes))


def _weights(patcher: ModelPatcher, keys: list[str]) -> list[bytes]:
    with ThreadPoolExecutor(4) as pool:  # hashlib releases the GIL
        return list(pool.map(lambda key: _sha(key.encode(), _tensor(pristine(patcher, key))), keys))


def _tensor(value: torch.Tensor) -> bytes:
    if isinstance(value, QuantizedTensor):
        value = value.dequantize()
    value = value.data.contiguous()  # not `detach`: a tensor loaded in inference mode and moved since then has no version counter to share
    data = value.reshape(-1).view(torch.uint8).cpu().numpy().data if value.numel() else b""
    return _sha(f"{value.dtype} {list(value.shape)}".encode(), data)


def _sha(*parts) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _qualified_name(value) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
