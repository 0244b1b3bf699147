"""One run on several processes: each takes its rows of the global batch, and the gradients are added up (Hugging Face Accelerate).

The processes draw the same noise for the whole batch and keep their rows of it, so the sum is the gradient of one process with the
same global batch, up to the order of additions.
"""

from __future__ import annotations

import os

import torch


class Alone:
    """One process: nothing to add up."""

    rank, world = 0, 1

    def add_up(self, gradients: list[torch.Tensor]) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag

    def of_the_first(self, numbers: list[int]) -> list[int]:
        return numbers


class Together(Alone):
    """The processes that `accelerate launch` has started, this one among them."""

    def __init__(self):
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ValueError("Training on several processes needs the Python package accelerate. Install it (pip install accelerate).") from error
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes

    def add_up(self, gradients: list[torch.Tensor]) -> None:
        """Replace each gradient by its sum over the processes, in one exchange."""
        flat = self.accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "sum")
        for gradient, total in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(total.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Is the flag up in one of the processes? All of them must ask."""
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum").item())

    def of_the_first(self, numbers: list[int]) -> list[int]:
        """The first process's whole numbers, in all of them. All of them must ask."""
        mine = torch.tensor(numbers if self.rank == 0 else [0] * len(numbers), device=self.accelerator.device)
        return self.accelerator.reduce(mine, "sum").tolist()


def processes() -> Alone:
    """`Together` where a launcher has started several processes, else `Alone`."""
    return Together() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()
