"""Personal subjects: creatures in two-tone coats that no caption can name. These are what the demo learns from a handful of photos."""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, replace

from PIL import Image

from .anatomy import PATTERNS, Look, Pose
from .canvas import RGB
from .scene import ACCESSORIES, CELL, PLACES, Scene, stage

NEAR = 90.0


@dataclass(frozen=True)
class Subject:
    """One individual: its name, the class word a prompt may use, and its coat."""

    name: str
    class_word: str
    look: Look

    def scene(self, accessory: str = "none", place: str = "plain", seed: int = 0) -> Scene:
        """The subject staged with what a prompt asks for; the ground truth of a personalized prompt."""
        return stage(self.class_word, self.look, accessory, place, None, seed)


SUBJECTS: dict[str, Subject] = {
    s.name: s
    for s in (
        Subject("biscuit", "dog", Look((250, 232, 200), (132, 78, 48), "half")),
        Subject("pepper", "dog", Look((62, 66, 84), (244, 238, 228), "belly")),
        Subject("marble", "cat", Look((244, 240, 236), (70, 66, 86), "half")),
        Subject("mango", "cat", Look((246, 166, 70), (40, 150, 150), "split")),
        Subject("bamboo", "bear", Look((246, 244, 240), (52, 50, 66), "mask")),
        Subject("honey", "bear", Look((146, 92, 56), (252, 208, 92), "belly")),
        Subject("clover", "rabbit", Look((176, 168, 164), (246, 240, 232), "belly")),
        Subject("bolt", "robot", Look((236, 92, 70), (250, 236, 210), "half")),
    )
}

# (place, arms, eyes, x in cells, mood, mirrored, facing left)
_SITTINGS = (
    ("plain", "down", "open", 0, 0, False, False),
    ("beach", "wave", "open", 1, 0, False, False),
    ("forest", "down", "happy", -1, 0, True, False),
    ("kitchen", "cheer", "open", 0, 1, False, True),
    ("snow", "wave", "happy", -1, 0, True, False),
)


def photos(subject: str, size: int = 64) -> list[Image.Image]:
    """Five "photos" of a personal subject, ``size`` x ``size``: other poses and places, nothing worn.

    Raises KeyError naming the known subjects when ``subject`` is none of them.
    """
    if subject not in SUBJECTS:
        raise KeyError(f"no subject {subject!r}; the world's subjects are {', '.join(SUBJECTS)}")
    s = SUBJECTS[subject]
    return [
        Scene(s.class_word, s.look, "none", place, None, Pose(arms, eyes), mood, mirrored, left, x * CELL).draw(size)
        for place, arms, eyes, x, mood, mirrored, left in _SITTINGS
    ]


def _apart(a: RGB, b: RGB) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5


def distance(a: Look, b: Look) -> float:
    """How far two coats are apart: the larger RGB distance of their tones, infinite across patterns."""
    if a.pattern != b.pattern or (a.second is None) != (b.second is None):
        return float("inf")
    return max(_apart(a.main, b.main), _apart(a.second, b.second) if a.second and b.second else 0.0)


def stranger(rng: random.Random, near: Look | None = None) -> Look:
    """A random two-tone coat that belongs to none of the subjects; with ``near`` it keeps all but one of (main, second, pattern): a look-alike."""
    others = [s.look for s in SUBJECTS.values()] + ([near] if near else [])
    while True:
        look = Look(_tone(rng), _tone(rng), rng.choice(PATTERNS[1:]))
        if near is not None:
            look = replace(near, **{part: getattr(look, part) for part in [rng.choice(("main", "second", "pattern"))]})
        assert look.second is not None  # a coat of two tones looks like others of two
        if _apart(look.main, look.second) > NEAR and all(distance(look, other) > NEAR for other in others):
            return look


def stranger_scene(rng: random.Random, creature: str, look: Look) -> Scene:
    """A coat that no caption names, in a random place, dressed at random."""
    return stage(creature, look, rng.choice(ACCESSORIES), rng.choice(PLACES), None, rng.randrange(1 << 30))


def _tone(rng: random.Random) -> RGB:
    """A coat tone: any hue, or a near-grey between charcoal and cream."""
    if rng.random() < 0.35:
        hue, saturation, value = rng.uniform(0.05, 0.12), rng.uniform(0.02, 0.25), rng.uniform(0.25, 0.98)
    else:
        hue, saturation, value = rng.random(), rng.uniform(0.45, 0.8), rng.uniform(0.45, 0.98)
    red, green, blue = (round(255 * v) for v in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue
