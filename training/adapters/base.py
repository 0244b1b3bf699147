"""What every adapter is: trained parameters on chosen layers of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Adapter:
    """Trained parameters on chosen layers of a training copy (`host.training_copy`), attached from construction on.

    parameters  stable name -> float32 parameter. They are the adapter's whole state: copying their values resumes a run
    """

    parameters: dict[str, torch.nn.Parameter]

    def lora(self) -> dict[str, torch.Tensor]:
        """What was learned, float32 on the CPU, under the names that core's loaders and its LORA_MODEL type use."""
        raise NotImplementedError

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it the network is the base model again, bit for bit.

        With gradient checkpointing, use it only under `no_grad`: the recomputed forward pass runs later, outside of it.
        """
        raise NotImplementedError
        yield

    def detach(self) -> None:
        """Make the network the base model again, for good."""
        raise NotImplementedError


class Hooked(Adapter):
    """An adapter that hooks on the layers hold. A subclass puts them into `_hooks`, and they do nothing while `_enabled` is off."""

    def __init__(self):
        self._enabled = True
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    @contextmanager
    def disabled(self) -> Iterator[None]:
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
