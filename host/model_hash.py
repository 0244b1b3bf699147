"""Which base model was it? A digest of its weights as they came from the file, whatever is patched onto them at the moment."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import torch
from comfy.quant_ops import QuantizedTensor

from .patcher import DIFFUSION, pristine


def model_hash(patcher) -> str:
    """SHA-256 (hexadecimal) over the name, type, shape and every byte of the diffusion model's parameters and buffers.

    Each tensor is digested by itself (in threads: hashing leaves Python's lock) and the digests in the order of the names. The same
    file loaded in another precision has another digest. Weights on a card are copied to memory one at a time.
    """
    keys = sorted(DIFFUSION + key for key in patcher.model.diffusion_model.state_dict(keep_vars=True))
    with ThreadPoolExecutor(4) as pool:
        digests = pool.map(lambda key: _digest(key, pristine(patcher, key)), keys)
        return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(key: str, value: torch.Tensor) -> bytes:
    if isinstance(value, QuantizedTensor):
        value = value.dequantize()
    value = value.detach().contiguous()
    result = hashlib.sha256(f"{key} {value.dtype} {list(value.shape)} ".encode())
    if value.numel():
        result.update(value.reshape(-1).view(torch.uint8).cpu().numpy().data)
    return result.digest()
