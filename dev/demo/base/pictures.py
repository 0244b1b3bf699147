"""The training set: scenes of the world as bytes, with the words for them. Held-out combinations never enter it."""

from __future__ import annotations

import random
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from world import scene, subjects

from .settings import Settings

NOTHING = ("", "", "", "")


@dataclass
class Pictures:
    """``pixels`` uint8 [N, 3, S, S]; ``labels`` N x (class, colour, accessory, place), colour "" for coats that no caption names."""

    pixels: torch.Tensor
    labels: list[tuple[str, str, str, str]]

    def batch(self, index: torch.Tensor) -> torch.Tensor:
        """Pictures in [0, 1], float [B, 3, S, S]."""
        return self.pixels[index].float() / 255


def sample(seed: int, strangers: float, allowed: list[tuple[str, str, str, str]]) -> tuple[scene.Scene, tuple[str, str, str, str]]:
    """One scene of the training distribution and its labels."""
    rng = random.Random(seed)
    creature, colour, accessory, place = rng.choice(allowed)
    staged = scene.named(creature, colour, accessory, place, rng.randrange(1 << 30))
    if rng.random() < strangers:
        return scene.with_look(staged, subjects.stranger(rng)), (creature, "", accessory, place)
    return scene.Scene(**{**staged.__dict__, "look": scene.palette_look(colour, rng)}), (creature, colour, accessory, place)


def _render(job: tuple[int, int, int, float, bool]) -> tuple[np.ndarray, list]:
    first, count, size, strangers, unseen = job
    held = scene.held_out()
    allowed = [combo for combo in scene.combinations() if (combo in held) == unseen]
    pixels, labels = np.empty((count, 3, size, size), np.uint8), []
    for i in range(count):
        staged, label = sample(first + i, strangers, allowed)
        pixels[i] = np.asarray(staged.draw(size)).transpose(2, 0, 1)
        labels.append(label)
    return pixels, labels


def render(count: int, settings: Settings, seed: int, strangers: float | None = None, unseen: bool = False, workers: int = 2) -> Pictures:
    """``count`` scenes from the seeds ``seed`` ... ``seed + count``; ``unseen`` draws from the held-out combinations only."""
    strangers = settings.strangers if strangers is None else strangers
    jobs = [(seed + at, min(500, count - at), settings.size, strangers, unseen) for at in range(0, count, 500)]
    with ProcessPoolExecutor(workers) as pool:
        parts = list(pool.map(_render, jobs))
    return Pictures(torch.from_numpy(np.concatenate([p for p, _ in parts])), [label for _, labels in parts for label in labels])


def load(settings: Settings, work: Path) -> Pictures:
    """The training set, rendered once into ``work``."""
    path = work / "pictures.pt"
    if path.is_file():
        state = torch.load(path, weights_only=True)
        return Pictures(state["pixels"], [tuple(label) for label in state["labels"]])
    pictures = render(settings.scenes, settings, seed=settings.seed * 1_000_000)
    torch.save({"pixels": pictures.pixels, "labels": pictures.labels}, path)
    return pictures
