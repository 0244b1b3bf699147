"""What a creature is made of: its coat, the places on its head, its pose."""

from __future__ import annotations

from dataclasses import dataclass

from .canvas import RGB, mix

INK: RGB = (40, 32, 56)
CREAM: RGB = (255, 246, 232)
PINK: RGB = (250, 150, 160)
PATTERNS = ("plain", "half", "mask", "belly", "split")


@dataclass(frozen=True)
class Look:
    """A creature's coat: the main colour, and a second one placed by ``pattern``. A caption can only name plain coats."""

    main: RGB
    second: RGB | None = None
    pattern: str = "plain"

    @property
    def soft(self) -> RGB:
        """The pale tint of belly and muzzle on a plain coat."""
        return mix(self.main, (255, 252, 246), 0.5) if sum(self.main) < 690 else (255, 255, 255)

    @property
    def outline(self) -> RGB:
        return mix(self.main, INK, 0.72)

    def of(self, part: str) -> RGB:
        """Colour of ``ears``, ``limbs``, ``body``, ``belly`` or ``muzzle`` under this pattern."""
        if self.second is None or self.pattern == "plain":
            return self.soft if part in ("belly", "muzzle") else self.main
        second = {"half": (), "mask": ("ears", "limbs"), "belly": ("belly", "muzzle"), "split": ("body", "limbs", "belly")}[self.pattern]
        if part in second:
            return self.second
        if part == "belly":
            return self.main if self.pattern == "half" else self.soft
        return self.soft if part == "muzzle" else self.main

    def around_eye(self, side: int) -> RGB:
        """The coat around the left (-1) or right (1) eye."""
        covered = self.pattern == "mask" or (self.pattern == "half" and side == 1)
        return self.second if self.second is not None and covered else self.main


@dataclass(frozen=True)
class Head:
    """Where things sit on a head: centre, half sizes, the eyes, and the places of hat and headphones."""

    cx: float = 0.5
    cy: float = 0.42
    rx: float = 0.235
    ry: float = 0.2
    eye_y: float = 0.41
    eye_dx: float = 0.095
    top: float = 0.245
    side: float = 0.235
    neck: float = 0.615


@dataclass(frozen=True)
class Pose:
    """How it stands: arms ('down', 'wave', 'cheer') and eyes ('open', 'happy')."""

    arms: str = "down"
    eyes: str = "open"
