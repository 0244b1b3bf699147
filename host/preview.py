"""The host in the middle of a training as it is when it samples, without a trace in what goes on after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch

from .types import Model


@contextmanager
def sampling_mode() -> Iterator[None]:
    """Inside a training: the host as it is when it samples (inference mode, its fast kernels), and the random state as it was, afterwards."""
    before, random = comfy.model_management.in_training, torch.get_rng_state()
    with torch.inference_mode():
        comfy.model_management.in_training = False
        try:
            yield
        finally:
            comfy.model_management.in_training = before
            torch.set_rng_state(random)


def load_again(patcher: Model) -> None:
    """Bring `patcher`'s own weights back into the module that it shares with the clone that has just drawn."""
    comfy.model_management.load_models_gpu([patcher])
