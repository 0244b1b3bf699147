"""Which photos a batch shows: concepts in even turns, and every photo of a concept once before any of them comes again.

All of it is a function of (photos, settings, seed, index of the batch), so that any batch can be laid out again at any time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

from .buckets import bucket_sizes, nearest_bucket
from .concept import Concept


def random_state(seed: int, *place: int) -> np.random.Generator:
    """A generator of its own for a place in the run, well mixed even for neighbouring seeds and steps."""
    return np.random.default_rng(np.random.SeedSequence([seed, *place]))


@dataclass(frozen=True)
class Sample:
    """One row of a batch: an image of a concept, or with `prior` one of its prior images, for a canvas of (height, width) pixels.

    `place` counts the instance rows of the run; a row's random numbers are drawn from it.
    """

    place: int
    concept: int
    image: int
    canvas: tuple[int, int]
    prior: bool = False


class Turns:
    """Place in a run -> (concept, how often that concept came before). In each cycle, concept c comes weights[c] times, spread out."""

    def __init__(self, weights: list[int]):
        self.weights, self.cycle, self.before = weights, [], []
        credit = [0] * len(weights)
        for _ in range(sum(weights)):  # smooth weighted round-robin: whoever is owed most comes next
            credit = [owed + weight for owed, weight in zip(credit, weights, strict=True)]
            chosen = credit.index(max(credit))
            credit[chosen] -= sum(weights)
            self.before.append(self.cycle.count(chosen))
            self.cycle.append(chosen)

    def __call__(self, place: int) -> tuple[int, int]:
        round_, position = divmod(place, len(self.cycle))
        concept = self.cycle[position]
        return concept, round_ * self.weights[concept] + self.before[position]


class SquareOrder:
    """All pictures cut square. Concepts take turns row by row, so a batch mixes them."""

    def __init__(self, concepts: list[Concept], resolution: int, batch_size: int, seed: int):
        self.concepts, self.canvas, self.batch_size, self.seed = concepts, (resolution, resolution), batch_size, seed
        self.turns = Turns([concept.repeats for concept in concepts])

    def samples(self, index: int) -> list[Sample]:
        """The rows of batch `index`: first `batch_size` images, then one prior image for each of those whose concept has some."""
        rows = []
        for place in range(index * self.batch_size, (index + 1) * self.batch_size):
            concept, turn = self.turns(place)
            rows.append((Sample(place, concept, nth_image(self.seed, len(self.concepts[concept].images), turn, concept, 2), self.canvas), turn))
        return [row for row, _ in rows] + prior_samples(self.concepts, rows, self.seed)


class BucketOrder:
    """Pictures keep their aspect ratio. A batch holds one bucket and one concept: concepts take turns batch by batch.

    The photo whose turn it is leads the batch, and others of its concept and bucket join it in random order; when there are too few,
    they come again (each row has a scale, mirroring, noise and time step of its own). So the batch size never changes, every concept
    gets its share exactly, and every photo of a concept is shown equally often, however the photos fall into buckets: a bucket leads
    as often as it has photos. Mixing concepts within the batch could not give that, for a concept has few photos, or none, in another's
    bucket. Prior images follow in turn, cut to the batch's bucket.
    """

    def __init__(self, concepts: list[Concept], resolution: int, batch_size: int, seed: int, latent_scale: int):
        self.concepts, self.batch_size, self.seed = concepts, batch_size, seed
        self.turns = Turns([concept.repeats for concept in concepts])
        sizes = bucket_sizes(resolution, latent_scale)
        self.buckets = [[nearest_bucket(*picture.shape[:2], sizes) for picture in concept.images] for concept in concepts]

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
    """The prior rows that go with `rows` (sample, turn of its concept), of the same canvas."""
    return [
        Sample(row.place, row.concept, nth_image(seed, len(concepts[row.concept].prior_images), turn, row.concept, 3), row.canvas, True)
        for row, turn in rows
        if concepts[row.concept].prior_images
    ]


def nth_image(seed: int, count: int, turn: int, *place: int) -> int:
    """The image of turn `turn` (from 0): every one of `count` before any comes again, each round in a new order."""
    return int(random_state(seed, *place, turn // count).permutation(count)[turn % count])
