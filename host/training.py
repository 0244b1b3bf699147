"""The host in training: gradients on, modules without a second copy of their weights, and the memory that a run takes and gives back.

Nodes run under inference mode, where the host also loads its weights: autograd refuses such tensors. A training copy here is the
module's structure again over the SAME storage, as ordinary tensors. Only what is trained gets memory of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch

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
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
        memo[id(tensor)] = torch.nn.Parameter(alias, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else alias
    return copy.deepcopy(module, memo)
