"""What a photo becomes: the crops, scales, flips and prompts of every step, laid out before the first one.

All of it is a function of (photos, settings, seed, step) and of nothing else, so any step can be made again: a resumed run sees
what an uninterrupted one saw, and each different view is encoded by the VAE once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from .concept import Concept

EMPTY = 0.5  # the canvas around a small picture: zero in the autoencoder's range of -1..1


@dataclass(frozen=True)
class View:
    """One look at one photo. `scale` is the side in pixels that the square crop is resized to; top, left place or crop it."""

    concept: int
    image: int
    scale: int
    top: int
    left: int
    flip: bool
    prior: bool = False


@dataclass(frozen=True)
class Batch:
    """One step's data: latents [n, c, h, w], masks [n, 1, h, w] in 0..1, prompts and prior flags of length n."""

    latents: torch.Tensor
    masks: torch.Tensor
    prompts: list[str]
    prior: torch.Tensor


def random_state(seed: int, *place: int) -> np.random.Generator:
    """A generator of its own for a place in the run, well mixed even for neighbouring seeds and steps."""
    return np.random.default_rng(np.random.SeedSequence([seed, *place]))


class Dataset:
    """The batches of a run: `batch(step)`; `encode` must have been called before.

    concepts    mixed evenly: the sample's place in the run chooses the concept in turn, a shuffled order chooses the photo
    resolution  side of the square in pixels, a multiple of 8
    augment     Custom Diffusion's scale augmentation: with probability 0.66 the picture is shrunk to 1/3..1 of the canvas and
                pasted somewhere, else enlarged to 1.2..1.4 and cropped; prompt and mask say so
    """

    def __init__(
        self, concepts: list[Concept], resolution: int, batch_size: int, steps: int, seed: int, augment: bool = True, flip: bool = True, latent_scale: int = 8
    ):
        self.concepts, self.resolution, self.batch_size, self.seed = concepts, resolution, batch_size, seed
        self.augment, self.flip, self.latent_scale = augment, flip, latent_scale
        self.with_prior = any(concept.prior_images for concept in concepts)
        self._steps = [self._plan(step) for step in range(steps)]
        self._latents: dict[View, torch.Tensor] = {}

    @property
    def views(self) -> list[View]:
        """Every different view of the run, in the order of first use."""
        return list(dict.fromkeys(view for step in self._steps for view, _ in step))

    def encode(self, to_latents: Callable[[torch.Tensor], torch.Tensor], batch_size: int = 8, progress: Callable[[int, int], None] | None = None) -> None:
        """Encode each view once. `to_latents` takes pixels [n, side, side, 3] in 0..1 and returns latents [n, c, h, w]."""
        views = [view for view in self.views if view not in self._latents]
        for start in range(0, len(views), batch_size):
            chunk = views[start : start + batch_size]
            latents = to_latents(torch.stack([self.pixels(view) for view in chunk]))
            self._latents.update(zip(chunk, latents.float().cpu().clone(), strict=True))
            if progress:
                progress(min(start + batch_size, len(views)), len(views))

    def batch(self, step: int) -> Batch:
        planned = self._steps[step]
        latents = torch.stack([self._latents[view] for view, _ in planned])
        return Batch(
            latents=latents,
            masks=torch.stack([self.mask(view, latents.shape[-2:]) for view, _ in planned]),
            prompts=[prompt for _, prompt in planned],
            prior=torch.tensor([view.prior for view, _ in planned]),
        )

    def pixels(self, view: View) -> torch.Tensor:
        """[side, side, 3] in 0..1: cut square at the middle, flipped, scaled, then pasted on the empty canvas or cropped."""
        pool = self.concepts[view.concept].prior_images if view.prior else self.concepts[view.concept].images
        return self._place(pool[view.image].movedim(-1, 0), view, EMPTY).movedim(0, -1).clamp(0, 1)

    def mask(self, view: View, size: tuple[int, int]) -> torch.Tensor:
        """[1, h, w]: 1 where the loss counts. Off the pasted picture and on its rim (one latent cell each side) it is 0."""
        height, width = size
        mask = torch.ones(1, height, width)
        if view.scale < self.resolution:
            cell = self.latent_scale
            edges = [(start // cell + 1, (start + view.scale) // cell - 1) for start in (view.top, view.left)]
            if any(end <= start for start, end in edges):  # too small to lose its rim: keep every cell that it covers
                edges = [(start // cell, -(-(start + view.scale) // cell)) for start in (view.top, view.left)]
            mask.zero_()
            mask[:, edges[0][0] : edges[0][1], edges[1][0] : edges[1][1]] = 1
        subject = None if view.prior else self.concepts[view.concept].masks
        if subject is not None:
            shown = functional.interpolate(self._place(subject[view.image][None], view, 0.0)[None], size=(height, width), mode="area")[0]
            mask = mask * shown if (mask * shown).sum() > 0 else mask
        return mask

    def _plan(self, step: int) -> list[tuple[View, str]]:
        planned = []
        for slot in range(self.batch_size):
            place = step * self.batch_size + slot
            index, turn = place % len(self.concepts), place // len(self.concepts)
            concept = self.concepts[index]
            random = random_state(self.seed, 1, place)
            planned.append(self._sample(index, self._nth_image(len(concept.images), turn, index, 2), False, random))
            if self.with_prior and concept.prior_images:
                planned.append(self._sample(index, self._nth_image(len(concept.prior_images), turn, index, 3), True, random))
        return planned

    def _nth_image(self, count: int, turn: int, *place: int) -> int:
        """Every photo once before any comes again, each round in a new order."""
        return int(random_state(self.seed, *place, turn // count).permutation(count)[turn % count])

    def _sample(self, concept: int, image: int, prior: bool, random: np.random.Generator) -> tuple[View, str]:
        side = self.resolution
        scale, prefix = side, ""
        if self.augment:
            scale = int(random.integers(side // 3, side + 1)) if random.random() < 0.66 else int(random.integers(int(1.2 * side), int(1.4 * side)))
            if scale < 0.6 * side:
                prefix = str(random.choice(["a far away ", "very small "]))
            elif scale > side:
                prefix = str(random.choice(["zoomed in ", "close up "]))
        top, left = (int(random.integers(0, abs(side - scale) + 1)) for _ in range(2))
        flip = self.flip and random.random() < 0.5
        prompt = self.concepts[concept].class_prompt if prior else self.concepts[concept].prompts[image]
        return View(concept, image, scale, top, left, bool(flip), prior), prefix + prompt

    def _place(self, picture: torch.Tensor, view: View, empty: float) -> torch.Tensor:
        """[channels, h, w] -> [channels, side, side]."""
        side = min(picture.shape[-2:])
        top, left = (picture.shape[-2] - side) // 2, (picture.shape[-1] - side) // 2
        square = picture[:, top : top + side, left : left + side]
        if view.flip:
            square = square.flip(-1)
        scaled = functional.interpolate(
            square[None], size=(view.scale, view.scale), mode="bicubic" if picture.shape[0] == 3 else "bilinear", antialias=True, align_corners=False
        )[0]
        if view.scale > self.resolution:
            return scaled[:, view.top : view.top + self.resolution, view.left : view.left + self.resolution]
        canvas = torch.full((picture.shape[0], self.resolution, self.resolution), empty)
        canvas[:, view.top : view.top + view.scale, view.left : view.left + view.scale] = scaled
        return canvas
