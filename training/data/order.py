"""Order of the photos: concepts take turns, and every photo of a concept is shown once before any is repeated.

The order is a function of (photos, settings, seed, batch index), so any batch can be made again at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from .buckets import bucket_sizes, nearest_bucket
from .concept import Concept


def random_state(seed: int, *position: int) -> np.random.Generator:
    """A random generator for one position in the run, independent even for neighboring seeds and steps."""
    return np.random.default_rng(np.random.SeedSequence([seed, *position]))


@dataclass(frozen=True)
class Sample:
    """One row of a batch: an image of a concept, or with `prior` one of its prior images, for a canvas of (height, width) pixels.

    `row` counts the photos' rows over the run; a row's random numbers are drawn from it.
    """

    row: int
    concept: int
    image: int
    canvas: tuple[int, int]
    prior: bool = False


class RoundRobin:
    """Position in a run -> (concept, how often it came before). In each cycle concept c comes weights[c] times, evenly spread."""

    def __init__(self, weights: list[int]):
        self.weights, self.cycle, self.before = weights, [], []
        credit = [0] * len(weights)
        for _ in range(sum(weights)):  # smooth weighted round-robin: the concept that is owed most comes next
            credit = [owed + weight for owed, weight in zip(credit, weights, strict=True)]
            chosen = credit.index(max(credit))
            credit[chosen] -= sum(weights)
            self.before.append(self.cycle.count(chosen))
            self.cycle.append(chosen)

    def __call__(self, row: int) -> tuple[int, int]:
        round_, position = divmod(row, len(self.cycle))
        concept = self.cycle[position]
        return concept, round_ * self.weights[concept] + self.before[position]


class SquareOrder:
    """All pictures are cropped square. Concepts take turns row by row, so a batch mixes them."""

    def __init__(self, concepts: list[Concept], resolution: int, batch_size: int, seed: int):
        self.concepts, self.canvas, self.batch_size, self.seed = concepts, (resolution, resolution), batch_size, seed
        self.turns = RoundRobin([concept.repeats for concept in concepts])

    def samples(self, index: int) -> list[Sample]:
        """The rows of batch `index`: `batch_size` photos, then one prior image for each photo whose concept has prior images."""
        rows = []
        for row in range(index * self.batch_size, (index + 1) * self.batch_size):
            concept, turn = self.turns(row)
            rows.append((Sample(row, concept, nth_image(self.seed, len(self.concepts[concept].images), turn, concept, 2), self.canvas), turn))
        return [row for row, _ in rows] + prior_samples(self.concepts, rows, self.seed)


class BucketOrder:
    """Pictures keep their aspect ratio. A batch holds one bucket and one concept: concepts take turns batch by batch.

    The photo whose turn it is leads the batch. Others of its concept and bucket join it in random order; if there are too few, photos are
    repeated (each row has its own scale, mirroring, noise and time step). So the batch size never changes, every concept gets exactly its
    share, and every photo of a concept is shown equally often, however the photos fall into buckets: a bucket leads as often as it has
    photos. A mix of concepts in one batch could not give that: a concept may have no photo in another's bucket. Prior images take turns,
    cropped to the batch's bucket.
    """

    def __init__(self, concepts: list[Concept], resolution: int, batch_size: int, seed: int, latent_scale: int):
        self.concepts, self.batch_size, self.seed = concepts, batch_size, seed
        self.turns = RoundRobin([concept.repeats for concept in concepts])
        sizes = bucket_sizes(resolution, latent_scale)
        self.buckets = [[nearest_bucket(picture.shape[0], picture.shape[1], sizes) for picture in concept.images] for concept in concepts]

    def samples(self, index: int) -> list[Sample]:
        """As `SquareOrder.samples`."""
        concept, turn = self.turns(index)
        buckets = self.buckets[concept]
        lead = nth_image(self.seed, len(buckets), turn, concept, 2)
        others = [image for image, bucket in enumerate(buckets) if bucket == buckets[lead] and image != lead]
        others = random_state(self.seed, 5, index).permutation(others).tolist()
        images = islice(cycle([lead, *others]), self.batch_size)
        rows = [(Sample(index * self.batch_size + slot, concept, image, buckets[lead]), turn * self.batch_size + slot) for slot, image in enumerate(images)]
        return [row for row, _ in rows] + prior_samples(self.concepts, rows, self.seed)


def prior_samples(concepts: list[Concept], rows: list[tuple[Sample, int]], seed: int) -> list[Sample]:
    """The prior images for `rows` (sample, turn of its concept), on the same canvas."""
    return [
        Sample(row.row, row.concept, nth_image(seed, len(concepts[row.concept].prior_images), turn, row.concept, 3), row.canvas, True)
        for row, turn in rows
        if concepts[row.concept].prior_images
    ]


def nth_image(seed: int, count: int, turn: int, *position: int) -> int:
    """The image of turn `turn` (from 0): all of `count` before any is repeated, each round in a new order."""
    return int(random_state(seed, *position, turn // count).permutation(count)[turn % count])
