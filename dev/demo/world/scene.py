"""A scene is a creature in a place; this module names it (captions), samples it from a seed, and draws it at any size."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace

from PIL import Image

from . import accessories, creatures, places
from .anatomy import Look, Pose
from .canvas import RGB, Canvas, ellipse

COLOURS: dict[str, RGB] = {
    "red": (224, 60, 58),
    "orange": (248, 140, 44),
    "yellow": (250, 214, 66),
    "green": (96, 184, 78),
    "blue": (70, 130, 226),
    "purple": (150, 92, 206),
    "pink": (248, 156, 196),
    "white": (246, 244, 250),
}
CLASSES, ACCESSORIES, PLACES = creatures.CLASSES, accessories.ACCESSORIES, places.PLACES
ATTRIBUTES: dict[str, tuple[str, ...]] = {"class": CLASSES, "colour": tuple(COLOURS), "accessory": ACCESSORIES, "place": PLACES}
# Creatures move by whole latent cells (8 of 64 pixels): seen from the autoencoder a moved creature is then the same one, and what it
# has to learn is a tenth. Free positions, sizes and head tilts cost it the faces.
CELL = 0.125
ARMS = ("down", "down", "wave", "cheer")


@dataclass(frozen=True)
class Scene:
    """Everything that decides the picture. ``colour`` is None where ``look`` is a coat that no caption can name."""

    creature: str
    look: Look
    accessory: str = "none"
    place: str = "plain"
    colour: str | None = None
    pose: Pose = field(default_factory=Pose)
    mood: int = 0
    mirrored: bool = False
    facing_left: bool = False
    x: float = 0.0
    scale: float = 1.0
    jump: float = 0.0

    def attributes(self) -> dict[str, str | None]:
        return {"class": self.creature, "colour": self.colour, "accessory": self.accessory, "place": self.place}

    def draw(self, size: int = 64) -> Image.Image:
        """The picture, ``size`` x ``size`` RGB; the same composition at every size."""
        c = Canvas(size, samples=4 if size <= 160 else 3)
        with c.transformed((0.5, 0.5), flip=self.mirrored):
            places.DRAW[self.place](c, self.mood)
        with c.transformed((0.5, 0.93), move=(self.x, 0), scale=self.scale):
            self._shadow(c)
            with c.transformed((0.5, 0.93), move=(0, -self.jump), flip=self.facing_left):
                creatures.draw(c, self.creature, self.look, self.pose, accessories.wear(self.accessory, self.look.main))
        return c.result()

    def _shadow(self, c: Canvas) -> None:
        ground = c.image.getpixel((c.pixels // 2, round(0.93 * c.pixels)))
        assert isinstance(ground, tuple)  # the picture is RGB
        width = 0.24 - 0.5 * self.jump
        red, green, blue = (round(v * 0.72) for v in ground)
        c.fill(ellipse(0.5, 0.935, width, 0.035), (red, green, blue))


def stage(creature: str, look: Look, accessory: str = "none", place: str = "plain", colour: str | None = None, seed: int = 0) -> Scene:
    """A scene with everything that a caption leaves open (pose, position, size, mood) drawn from ``seed``."""
    rng = random.Random(f"{creature}|{accessory}|{place}|{colour}|{seed}")
    return Scene(
        creature,
        look,
        accessory,
        place,
        colour,
        pose=Pose(rng.choice(ARMS), rng.choice(("open", "open", "happy"))),
        mood=rng.randrange(places.MOODS),
        mirrored=rng.random() < 0.5,
        facing_left=rng.random() < 0.5,
        x=rng.choice((-CELL, 0.0, 0.0, CELL)),
    )


def named(creature: str, colour: str, accessory: str = "none", place: str = "plain", seed: int = 0) -> Scene:
    """A scene that ``caption`` describes completely. Raises KeyError for a word outside the world."""
    return stage(creature, Look(COLOURS[colour]), accessory, place, colour, seed)


def caption(creature: str, colour: str | None = None, accessory: str = "none", place: str = "plain", opening: str = "a photo of") -> str:
    """The world's sentence: "a photo of a red dog wearing a hat on the beach"; what is None or absent is left unsaid."""
    noun = f"{colour} {creature}" if colour else creature
    article = "an" if noun[0] in "aeiou" else "a"
    return " ".join(part for part in (opening, article, noun, accessories.PHRASES[accessory], places.PHRASES[place]) if part)


def combinations() -> list[tuple[str, str, str, str]]:
    """All (class, colour, accessory, place), in a fixed order."""
    classes, colours, worn, found = ATTRIBUTES.values()
    return list(itertools.product(classes, colours, worn, found))


def held_out() -> set[tuple[str, str, str, str]]:
    """One combination in eight, never shown in training, spread so that every pair of attribute values stays well covered by the rest."""
    chosen = set()
    for combo in combinations():
        a, b, c, d = (values.index(value) for values, value in zip(ATTRIBUTES.values(), combo, strict=True))
        if (3 * a + 5 * b + 2 * c + d) % 8 == 0:
            chosen.add(combo)
    return chosen


def palette_look(colour: str, rng: random.Random, wobble: int = 8) -> Look:
    """A named coat with a little of nature's variation."""
    red, green, blue = (max(0, min(255, v + rng.randint(-wobble, wobble))) for v in COLOURS[colour])
    return Look((red, green, blue))


def with_look(scene: Scene, look: Look) -> Scene:
    """The same composition in another coat, which no caption names."""
    return replace(scene, look=look, colour=None)
