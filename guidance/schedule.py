"""The schedule of omega over sampling, and the guidance interval.

Time is the host's "percent": 0 at pure noise, 1 at the image, as in its conditioning nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

CURVES: dict[str, Callable[[float], float]] = {  # x in [0, 1] -> share of the way from omega to omega_end
    "constant": lambda x: 0.0,
    "linear": lambda x: x,
    "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2,
}


def check_omega(omega: float, name: str = "omega") -> float:
    """`omega` as a float in [0, 1]. The server checks widget values only; a value from a link is checked here."""
    try:
        value = float(omega)
    except (TypeError, ValueError):
        raise ValueError(f"`{name}` is {omega!r}; expected a number from 0 (the weak model is the base) to 1 (plain CFG).") from None
    if not 0.0 <= value <= 1.0:  # NaN, too
        raise ValueError(f"`{name}` is {value}; expected a number from 0 (the weak model is the base) to 1 (plain CFG).")
    return value


@dataclass(frozen=True)
class Schedule:
    """omega(percent), and the guidance interval [start, end] in percent (Kynkaanniemi et al. 2024: guidance helps in the middle)."""

    omega: float
    omega_end: float | None = None
    curve: str | Callable[[float], float] = "constant"  # a name, or x in [0, 1] -> mix in [0, 1] from omega to omega_end
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "omega", check_omega(self.omega))
        object.__setattr__(self, "omega_end", self.omega if self.omega_end is None else check_omega(self.omega_end, "omega_end"))
        if isinstance(self.curve, str) and self.curve not in CURVES:
            raise ValueError(f"`omega_curve` is {self.curve!r}; expected one of {', '.join(CURVES)}.")
        for name in ("start", "end"):
            value = float(getattr(self, name))
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"`{name}_percent` is {value}; expected a number from 0 (pure noise) to 1 (the image).")
        if self.start >= self.end:
            raise ValueError(f"The guidance interval from {self.start} to {self.end} is empty: `start_percent` must be below `end_percent`.")

    @property
    def constant(self) -> bool:
        return self.curve == "constant" or self.omega == self.omega_end

    @property
    def whole(self) -> bool:
        """Is there guidance from the first to the last step?"""
        return self.start <= 0.0 and self.end >= 1.0

    @property
    def is_cfg(self) -> bool:
        """Is it plain CFG?"""
        return self.constant and self.omega == 1.0 and self.whole

    def at(self, percent: float) -> float:
        """omega at `percent`."""
        if self.constant:
            return self.omega
        curve = CURVES[self.curve] if isinstance(self.curve, str) else self.curve
        mix = min(max(float(curve(min(max(percent, 0.0), 1.0))), 0.0), 1.0)
        last = self.omega if self.omega_end is None else self.omega_end
        return self.omega + (last - self.omega) * mix

    def guides(self, sigma: float, percent_to_sigma: Callable[[float], float]) -> bool:
        """Is `sigma` inside the interval? Compared in sigma, like the host compares its own timestep ranges."""
        return float(percent_to_sigma(self.end)) <= sigma <= float(percent_to_sigma(self.start))


def percent_of(sigma: float, percent_to_sigma: Callable[[float], float], digits: int = 20) -> float:
    """The percent of `sigma`, by bisection: the host's schedules only go from percent to sigma, which falls from 0 to 1."""
    low, high = 0.0, 1.0
    for _ in range(digits):
        middle = (low + high) / 2
        if float(percent_to_sigma(middle)) > sigma:
            low = middle
        else:
            high = middle
    return (low + high) / 2
