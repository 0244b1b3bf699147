"""The host in training: training mode, training copies of modules, encoded images, and the memory of a run.

Nodes run in inference mode, and the host loads its weights in it too, but autograd refuses such tensors. A training copy repeats the module's
structure with ordinary tensors over the SAME storage. Only trained parameters get memory of their own.
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

interrupt_check = comfy.model_management.throw_exception_if_processing_interrupted


@contextmanager
def training_mode() -> Iterator[None]:
    """A context with gradients on, in which the host avoids kernels without a gradient. Restores both settings in any case."""
    before = comfy.model_management.in_training
    with torch.inference_mode(False), torch.enable_grad():
        comfy.model_management.in_training = True
        try:
            yield
        finally:
            comfy.model_management.in_training = before


def training_copy(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of the module whose parameters and buffers are frozen aliases of the same storage: differentiable, without memory of its own."""
    memo: dict[int, torch.Tensor] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        alias = _alias(tensor)
        memo[id(tensor)] = torch.nn.Parameter(alias, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else alias
    return copy.deepcopy(module, memo)


def ordinary(patcher):
    """`patcher`, or its clone without dynamic VRAM if it has dynamic VRAM. Raises ValueError if there is no such clone.

    With dynamic VRAM the host may evict a weight between the forward and the backward pass, which autograd does not support.
    """
    if not getattr(patcher, "is_dynamic", bool)():
        return patcher
    try:
        return patcher.clone(disable_dynamic=True)
    except RuntimeError as error:
        raise ValueError(
            "Training needs the model without dynamic VRAM, but ComfyUI cannot reload a model that was not loaded from a file. "
            "Load it with Load Checkpoint or Load Diffusion Model, or start ComfyUI with --disable-dynamic-vram."
        ) from error


def encode_pictures(vae, pixels: torch.Tensor) -> torch.Tensor:
    """The VAE's latents [n, c, h, w], or [n, c, 1, h, w] of a video VAE, of images [n, height, width, 3] in 0..1.

    A video VAE reads a batch as the frames of one video, so it encodes one image at a time.
    """
    if getattr(vae, "latent_dim", 2) == 3:
        return torch.cat([vae.encode(pixels[index : index + 1]) for index in range(len(pixels))])
    return vae.encode(pixels)


def is_out_of_memory(error: BaseException) -> bool:
    """Is the cause of `error` that the device ran out of memory?"""
    is_oom = getattr(comfy.model_management, "is_oom", None)  # since ComfyUI 0.18; knows more exceptions than torch's own
    return isinstance(error, torch.OutOfMemoryError) or (is_oom is not None and bool(is_oom(error)))


def free_memory_after_run() -> None:
    """Free the device's cached memory after a run. Call it when nothing refers to the run's objects any more.

    Models that the run loaded stay in the host's memory manager, which unloads them when it needs the memory, as after sampling.
    """
    gc.collect()  # layers that refer to each other keep activations and gradients alive until then
    comfy.model_management.cleanup_models()
    comfy.model_management.soft_empty_cache()


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, QuantizedTensor):
        parts = {field.name: getattr(tensor._params, field.name) for field in dataclasses.fields(tensor._params)}
        parts = {name: _alias(part) if torch.is_tensor(part) else part for name, part in parts.items()}
        return QuantizedTensor(_alias(tensor._qdata), tensor._layout_cls, type(tensor._params)(**parts))
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
