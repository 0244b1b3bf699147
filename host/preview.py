"""Sampling in the middle of a training, without an effect on the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import torch


@contextmanager
def sampling_mode() -> Iterator[None]:
    """A context inside a training in which the host samples as usual (inference mode, fast kernels). Restores the random state afterwards."""
    before, random = comfy.model_management.in_training, torch.get_rng_state()
    with torch.inference_mode():
        comfy.model_management.in_training = False
        try:
            yield
        finally:
            comfy.model_management.in_training = before
            torch.set_rng_state(random)


def load_again(patcher) -> None:
    """Load `patcher`'s own weights back into the module that it shares with the clone that has just sampled."""
    comfy.model_management.load_models_gpu([patcher])
