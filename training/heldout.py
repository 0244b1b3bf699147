"""Held-out loss: the denoising loss on views and noise that the training never sees, the same at every measurement.

Views, noise and noise levels are functions of (photos, resolution, crop, seed), so the curves of all runs with these compare: of a longer run, of
another rate, of another method. The loss is always the papers' plain l2, whatever the training minimizes.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

import numpy as np
import torch

from . import losses
from .data.augmentation import View
from .data.dataset import Dataset
from .data.order import BucketOrder, nth_image, random_state

ROWS = 8  # views at least; their noise levels are the middles of as many equal parts of the schedule
ZOOM = 1.1  # between plain training (1) and the augmentation (up to 1, and from 1.2): no step ever draws such a view


class HeldOut:
    """The rows that the loss is measured on: concepts take turns, and so do the photos of each. `encode` first."""

    def __init__(self, data: Dataset, seed: int):
        self.data, self.seed = data, seed
        self.count = max(ROWS, len(data.concepts))
        self.views = [self._view(row) for row in range(self.count)]
        self.parts = (random_state(seed, 8).permutation(self.count) + 0.5) / self.count  # of the schedule; shuffled, so that no photo has all the high ones
        self.latents: list[torch.Tensor] = []

    def encode(self, to_latents: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Encode the views; `to_latents` as for `Dataset.encode`. Call it while the VAE has room, before the model is loaded for training."""
        self.latents = self.data.encoded(self.views, to_latents)
        self.masks = [self.data.mask(view) for view in self.views]

    @torch.no_grad()
    def loss(self, run) -> float:
        """The mean over the rows, with the weights that are the run's result now (the average, if it keeps one). It changes nothing."""
        with run.learned.averaged(), run.casting():
            rows = [self._rows(run, list(rows)) for _, rows in groupby(self._sorted(), lambda row: (self.latents[row].shape, row // run.settings.batch_size))]
        return float(torch.cat(rows).double().mean().item())

    def _sorted(self) -> list[int]:
        """The rows, those of one shape side by side: only they can share a forward pass."""
        return sorted(range(self.count), key=lambda row: (tuple(self.latents[row].shape), row))

    def _rows(self, run, rows: list[int]) -> torch.Tensor:
        concepts = self.data.concepts
        latents = run.denoiser.latents(torch.stack([self.latents[row] for row in rows]))
        noise = torch.stack([self._noise(row, latents.shape[1:]) for row in rows])
        sigma = torch.tensor([run.denoiser.sigma_at(self.parts[row]) for row in rows])
        prompts = [concepts[self.views[row].concept].prompts[self.views[row].image] for row in rows]
        output, target = run.denoiser.predict(latents.to(run.device), noise.to(run.device), sigma, run.prompts(prompts))
        return losses.reconstruction(output, target, torch.stack([self.masks[row] for row in rows]).to(run.device))

    def _noise(self, row: int, shape: torch.Size) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(random_state(self.seed, 7, row).integers(2**63)))
        return torch.randn(shape, generator=generator)

    def _view(self, row: int) -> View:
        order, count = self.data.order, len(self.data.concepts)
        concept, turn = row % count, row // count
        image = nth_image(self.seed, len(self.data.concepts[concept].images), turn, concept, 9)
        canvas = order.buckets[concept][image] if isinstance(order, BucketOrder) else order.canvas
        size = (round(canvas[0] * ZOOM), round(canvas[1] * ZOOM))
        random: np.random.Generator = random_state(self.seed, 10, row)
        top, left = (int(random.integers(0, whole - part + 1)) for whole, part in zip(size, canvas, strict=True))
        return View(concept, image, False, canvas, size, top, left, False)
