"""Distributed training: each process takes its rows of the global batch, and the gradients are summed (Hugging Face Accelerate).

All processes draw the same noise for the whole batch and keep their rows of it. So the sum is the gradient of a single process with the
same global batch, up to the order of additions.
"""

from __future__ import annotations

import os
from typing import cast

import torch


class SingleProcess:
    """One process: nothing to exchange."""

    rank, world = 0, 1

    def all_reduce_sum(self, gradients: list[torch.Tensor]) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast(self, numbers: list[int]) -> list[int]:
        return numbers


class Distributed(SingleProcess):
    """This process among those that `accelerate launch` started."""

    def __init__(self):
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ValueError("Training on several processes needs the Python package accelerate. Install it (pip install accelerate).") from error
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes

    def all_reduce_sum(self, gradients: list[torch.Tensor]) -> None:
        """Replace each gradient with its sum over the processes, in one exchange."""
        flat = self._sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Is the flag set in any process? All processes must call this."""
        return bool(self._sum(torch.tensor(float(flag), device=self.accelerator.device)).item())

    def broadcast(self, numbers: list[int]) -> list[int]:
        """The first process's integers, in all processes. All processes must call this."""
        mine = torch.tensor(numbers if self.rank == 0 else [0] * len(numbers), device=self.accelerator.device)
        return self._sum(mine).tolist()

    def _sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.accelerator.reduce(tensor, "sum"))


def processes() -> SingleProcess:
    """`Distributed` if a launcher started several processes, else `SingleProcess`."""
    return Distributed() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else SingleProcess()
