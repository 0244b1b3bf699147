"""The dataset: batches of latents, masks and prompts.

A batch is a function of (photos, settings, seed, index) alone, so it can be made again at any time: a resumed run sees what an
uninterrupted one sees, and what is cached never changes a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from ..settings import CROPS
from .augmentation import EMPTY, View, border_mask, cut, draw_view, show
from .concept import Concept
from .order import BucketOrder, SquareOrder, random_state

__all__ = ["Batch", "Dataset", "View", "random_state"]

HELD_PIXELS = 2**30  # of all views held at once: 256 MiB of latents with 4 channels (8 x 8 pixels a cell), 1 GiB with 16
HELD_BATCHES = 2048  # laid out ahead at once


@dataclass(frozen=True)
class Batch:
    """One batch: rows of photos, then rows of prior images. All rows have one size.

    latents   [n, channels, h, w] float32 on the CPU, as the VAE gives them; [n, channels, 1, h, w] for a model of videos
    masks     [n, 1, h, w] in 0..1: where the loss counts
    prompts   n of them
    prior     [n] bool
    concepts  n indices into the run's concepts
    """

    latents: torch.Tensor
    masks: torch.Tensor
    prompts: list[str]
    prior: torch.Tensor
    concepts: list[int]


class Dataset:
    """The batches of a run: `encode` once, then `batch(index)`.

    concepts         mixed evenly, in proportion to their `repeats`
    resolution       side of the square in pixels, a multiple of `latent_scale`
    batch_size       photos in a batch; one prior image is added for each photo whose concept has some
    steps            batches of the run; only how far to encode ahead depends on it, never a batch
    augment          Custom Diffusion's scale augmentation of the photos (not of prior images), with its masks and prompts
    flip             mirror half of the views
    latent_scale     pixels in one cell of the latents, each way
    latent_dimensions  2 for image models, 3 for video models, which take a picture as a video of one frame
    crop             "square": the middle of each picture, as the papers do. "buckets": aspect ratios are kept, see `BucketOrder`
    caption_dropout  probability that an image's prompt is the empty one
    """

    def __init__(
        self,
        concepts: list[Concept],
        resolution: int,
        batch_size: int,
        steps: int,
        seed: int,
        augment: bool = True,
        flip: bool = True,
        latent_scale: int = 8,
        crop: str = "square",
        caption_dropout: float = 0.0,
        latent_dimensions: int = 2,
    ):
        if latent_dimensions not in (2, 3):
            raise ValueError(f"This model's latents have {latent_dimensions} dimensions. Kindred trains image models (2) and video models (3).")
        if resolution % latent_scale:
            raise ValueError(f"resolution is {resolution}; this model's latents need a multiple of {latent_scale}.")
        if crop not in CROPS:
            raise ValueError(f"crop is {crop!r}; expected {' or '.join(map(repr, CROPS))}.")
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"caption_dropout is {caption_dropout}; expected a probability from 0 to 1.")
        self.concepts, self.resolution, self.steps, self.seed = concepts, resolution, steps, seed
        self.augment, self.flip, self.latent_scale, self.caption_dropout = augment, flip, latent_scale, caption_dropout
        self.latent_dimensions = latent_dimensions
        square = SquareOrder(concepts, resolution, batch_size, seed)
        self.order = square if crop == "square" else BucketOrder(concepts, resolution, batch_size, seed, latent_scale)
        self._encoded: dict[View, tuple[torch.Tensor, torch.Tensor]] = {}
        self._middle: tuple[tuple, torch.Tensor] = ((), torch.empty(0))
        self._to_latents = self._progress = None

    def plan(self, index: int) -> list[tuple[View, str]]:
        """The views and prompts of batch `index`, in the order of its rows."""
        return [self._look(sample) for sample in self.order.samples(index)]

    @property
    def views(self) -> list[View]:
        """Every distinct view of the run, in order of first use. Plans all steps: not for long runs."""
        return list(dict.fromkeys(view for index in range(self.steps) for view, _ in self.plan(index)))

    def encode(self, to_latents: Callable[[torch.Tensor], torch.Tensor], progress: Callable[[int, int], None] | None = None, start: int = 0) -> None:
        """Encode the views from batch `start` on, each distinct one once; as many as the cache holds, usually all of the run.

        to_latents  pixels [1, h, w, 3] in 0..1 -> latents [1, channels, h, w] or, from a VAE for video, [1, channels, 1, h, w].
                    Views are encoded one at a time, so that their latents have the same bits before and after a resume
        progress    called with (done, total)
        `batch` calls both again when a long run has used up the cache. Raises ValueError if the latents do not fit the model.
        """
        self._to_latents, self._progress = to_latents, progress
        self._hold(start)

    def encoded(self, views: list[View], to_latents: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        """The latents [channels, h, w] (or [channels, 1, h, w]) of views that are no batch's, without a place in the cache."""
        self._to_latents = to_latents
        return [self._latents(view) for view in views]

    def ready(self, index: int) -> bool:
        """Is batch `index` in the cache, so that it needs no VAE?"""
        return all(view in self._encoded for view, _ in self.plan(index))

    def batch(self, index: int) -> Batch:
        planned = self.plan(index)
        if not all(view in self._encoded for view, _ in planned):
            self._hold(index)
        encoded = [self._encoded[view] for view, _ in planned]
        return Batch(
            latents=torch.stack([latents for latents, _ in encoded]),
            masks=torch.stack([mask for _, mask in encoded]),
            prompts=[prompt for _, prompt in planned],
            prior=torch.tensor([view.prior for view, _ in planned]),
            concepts=[view.concept for view, _ in planned],
        )

    def pixels(self, view: View) -> torch.Tensor:
        """[height, width, 3] in 0..1: the pixels of `view` for the VAE."""
        place = (view.concept, view.prior, view.image, view.canvas)
        if self._middle[0] != place:  # one large photo is cut once for all its views
            concept = self.concepts[view.concept]
            self._middle = (place, cut((concept.prior_images if view.prior else concept.images)[view.image].movedim(-1, 0), view.canvas))
        return show(self._middle[1], view, EMPTY).movedim(0, -1).clamp(0, 1)

    def mask(self, view: View) -> torch.Tensor:
        """[1, h, w] in latent cells: inside the pasted picture the subject's mask or 1, elsewhere 0."""
        mask = border_mask(view, self.latent_scale)
        subject = None if view.prior else self.concepts[view.concept].masks
        if subject is None:
            return mask
        shown = show(cut(subject[view.image][None], view.canvas), view, 0.0)
        shown = mask * functional.interpolate(shown[None], size=mask.shape[1:], mode="area")[0]
        return shown if shown.sum() > 0 else mask

    def _look(self, sample) -> tuple[View, str]:
        """The view and prompt of a sample. A prior image is plain, as in Custom Diffusion: resized, cropped, maybe mirrored, with the bare class prompt."""
        augment = self.augment and not sample.prior
        view, prefix = draw_view(sample, random_state(self.seed, 1, sample.row, sample.prior), augment, self.flip, self.resolution)
        concept = self.concepts[sample.concept]
        if sample.prior:
            return view, concept.class_prompt
        if self.caption_dropout and random_state(self.seed, 6, sample.row, sample.prior).random() < self.caption_dropout:
            return view, ""
        return view, prefix + concept.prompts[sample.image]

    def _hold(self, start: int) -> None:
        """Fill the cache with the views from batch `start` on, as many as fit, and drop all others."""
        if self._to_latents is None:
            raise RuntimeError("Call Dataset.encode before Dataset.batch.")
        wanted: dict[View, None] = {}
        for index in range(start, max(start + 1, min(self.steps, start + HELD_BATCHES))):
            more = wanted | dict.fromkeys(view for view, _ in self.plan(index))
            if wanted and len(more) * self.resolution**2 > HELD_PIXELS:
                break
            wanted = more
        self._encoded = {view: encoded for view, encoded in self._encoded.items() if view in wanted}
        missing = sorted(wanted.keys() - self._encoded.keys(), key=lambda view: (view.concept, view.prior, view.image, view.canvas))
        for done, view in enumerate(missing, 1):
            self._encoded[view] = self._latents(view), self.mask(view)
            if self._progress:
                self._progress(done, len(missing))

    def _latents(self, view: View) -> torch.Tensor:
        assert self._to_latents is not None  # `_hold` refuses it
        latents = self._to_latents(self.pixels(view)[None])
        found = list(latents.shape)
        if self.latent_dimensions == 2 and latents.ndim == 5 and latents.shape[2] == 1:  # from a video VAE
            latents = latents[:, :, 0]
        elif self.latent_dimensions == 3 and latents.ndim == 4:  # a video model with an image VAE
            latents = latents[:, :, None]
        height, width = (side // self.latent_scale for side in view.canvas)
        frames = [1] if self.latent_dimensions == 3 else []
        if latents.ndim != self.latent_dimensions + 2 or len(latents) != 1 or list(latents.shape[2:]) != [*frames, height, width]:
            wanted = ", ".join(map(str, [1, "channels", *frames, height, width]))
            raise ValueError(
                f"vae gives latents of shape {found} for a picture of {view.canvas[1]} x {view.canvas[0]} pixels, but this model "
                f"needs [{wanted}]. Connect the VAE that belongs to the model."
            )
        return latents[0].float().cpu().clone()
