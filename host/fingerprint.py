"""What a result was made from, as one digest: weights, what is patched onto them, settings. Equal digests, equal results."""

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

# The files of SD 1.x have none, do not need it, and the host leaves it as memory was. Where it counts, it goes with an encoder that does, too.
UNINITIALISED = "clip_l.transformer.text_projection.weight"


def fingerprint(*parts) -> str:
    """SHA-256 (hexadecimal) over the content of `parts`: numbers, texts, tensors, containers of these, and the host's model patchers.

    A patcher counts with its weights as they came from the file, the patches on them, and its options. Functions and other objects count
    by their names and what they hold. What differs from run to run without any effect (places in memory, uuids, devices) does not count.
    """
    return _Digest().of(parts).hex()


def model_hash(patcher) -> str:
    """SHA-256 (hexadecimal) over the diffusion model's weights as they came from the file, whatever is patched onto them at the moment.

    The same file loaded in another precision has another digest.
    """
    return _sha(*_weights(patcher, sorted(DIFFUSION + key for key in patcher.model.diffusion_model.state_dict(keep_vars=True)))).hex()


class _Digest:
    def __init__(self):
        self.known: dict[int, bytes] = {}  # objects by identity: each once, and no endless loop where they hold one another
        self.alive: list = []  # an identity means something only as long as its object lives

    def of(self, value) -> bytes:
        if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype)):
            return _sha(f"{type(value).__name__} {value!r}".encode())
        if isinstance(value, (uuid.UUID, torch.device)):
            return _sha(type(value).__name__.encode())
        if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
            return _sha(_name(value).encode())
        if id(value) not in self.known:
            self.known[id(value)] = b"itself"
            self.alive.append(value)
            self.known[id(value)] = self._holder(value)
        return self.known[id(value)]

    def _holder(self, value) -> bytes:
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
            return _sha(_name(type(value)).encode(), self.of(plain), self.of(value.state_dict()))
        if isinstance(value, types.MethodType):
            return _sha(self.of(value.__func__), self.of(value.__self__))
        if isinstance(value, functools.partial):
            return _sha(self.of(value.func), self.of(value.args), self.of(value.keywords))
        if isinstance(value, types.FunctionType):
            held = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            return _sha(_name(value).encode(), self.of(value.__defaults__), self.of(held))
        return _sha(_name(type(value)).encode(), self.of(getattr(value, "__dict__", {})))

    def _patcher(self, patcher: ModelPatcher) -> bytes:
        keys = sorted(key for key in patcher.model.state_dict(keep_vars=True) if not key.endswith(UNINITIALISED))
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
        return _sha(_name(type(patcher.model)).encode(), *weights, *map(self.of, changes))


def _weights(patcher: ModelPatcher, keys: list[str]) -> list[bytes]:
    with ThreadPoolExecutor(4) as pool:  # hashing leaves Python's lock
        return list(pool.map(lambda key: _sha(key.encode(), _tensor(pristine(patcher, key))), keys))


def _tensor(value: torch.Tensor) -> bytes:
    if isinstance(value, QuantizedTensor):
        value = value.dequantize()
    value = value.data.contiguous()  # not `detach`: one that was loaded in inference mode and moved since has no version counter to share
    data = value.reshape(-1).view(torch.uint8).cpu().numpy().data if value.numel() else b""
    return _sha(f"{value.dtype} {list(value.shape)}".encode(), data)


def _sha(*parts) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _name(value) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"
