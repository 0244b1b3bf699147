"""The host in training: gradients on, modules without a second copy of their weights, and the memory that a run takes and gives back.

Nodes run under inference mode, where the host also loads its weights: autograd refuses such tensors. A training copy here is the
module's structure again over the SAME storage, as ordinary tensors. Only what is trained gets memory of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch
from comfy.quant_ops import QuantizedTensor

from .types import Vae

interrupt_check = comfy.model_management.throw_exception_if_processing_interrupted


@contextmanager
def training_mode() -> Iterator[None]:
    """Gradients on, and the host told so (it then leaves out kernels that have none). Everything is restored, whatever happens."""
    before = comfy.model_management.in_training
    with torch.inference_mode(False), torch.enable_grad():
        comfy.model_management.in_training = True
        try:
            yield
        finally:
            comfy.model_management.in_training = before


def training_copy(module: torch.nn.Module) -> torch.nn.Module:
    """The module again, its parameters and buffers frozen aliases of the same storage: differentiable, and no memory of its own."""
    memo: dict[int, torch.Tensor] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        alias = _alias(tensor)
        memo[id(tensor)] = torch.nn.Parameter(alias, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else alias
    return copy.deepcopy(module, memo)


def ordinary(patcher):
    """A patcher that keeps its weights where the host's memory manager puts them: `patcher`, or its sibling without dynamic VRAM.

    A dynamically loaded weight may be evicted between the forward and the backward pass, which autograd cannot follow.
    """
    if not getattr(patcher, "is_dynamic", bool)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            "This model was not loaded from a file, so the host cannot load it again without dynamic VRAM, which training needs. "
            "Load it with Load Checkpoint or Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram."
        ) from error


def encode_pictures(vae: Vae, pixels: torch.Tensor) -> torch.Tensor:
    """Pictures [n, height, width, 3] in 0..1 -> the VAE's latents [n, c, h, w], or [n, c, 1, h, w] where it is one for video.

    A video's autoencoder takes a batch for the frames of one film, so it is given one picture at a time.
    """
    if getattr(vae, "latent_dim", 2) == 3:
        return torch.cat([vae.encode(pixels[index : index + 1]) for index in range(len(pixels))])
    return vae.encode(pixels)


def is_out_of_memory(error: BaseException) -> bool:
    """Did the device run out of memory (and nothing else go wrong)?"""
    known_to_host = getattr(comfy.model_management, "is_oom", None)  # further signs than torch's own exception, from 0.18 on
    return isinstance(error, torch.OutOfMemoryError) or (known_to_host is not None and bool(known_to_host(error)))


def memory_after_run() -> None:
    """Give the device's cached memory back after a run, so that the host finds what it had before. Call it when the run's objects are gone.

    Models that the run loaded stay with the host's memory manager, which unloads them when it needs the room, as after sampling.
    """
    gc.collect()  # a network whose layers refer to each other holds its activations and gradients until then
    comfy.model_management.cleanup_models()
    comfy.model_management.soft_empty_cache()


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, QuantizedTensor):
        parts = {field.name: getattr(tensor._params, field.name) for field in dataclasses.fields(tensor._params)}
        parts = {name: _alias(part) if torch.is_tensor(part) else part for name, part in parts.items()}
        return QuantizedTensor(_alias(tensor._qdata), tensor._layout_cls, type(tensor._params)(**parts))
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
