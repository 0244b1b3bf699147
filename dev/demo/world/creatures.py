"""The eight creatures. Each is a head on a small body, seen from the front, so that every accessory finds its place on every class.

Coordinates are the frame's own (unit square) for a creature of scale 1 standing on the ground line y = 0.93.
"""

from __future__ import annotations

from .anatomy import CREAM, INK, PINK, Head, Look, Pose
from .canvas import RGB, Canvas, ellipse, mix, rounded, smooth


def _eyes(c: Canvas, h: Head, pose: Pose, look: Look | None, r: float = 0.034) -> None:
    """Eyes straight on the coat (``look`` None: on white eyeballs); dark fur gets a pale rim, or they would vanish."""
    for side in (-1, 1):
        x = h.cx + side * h.eye_dx
        dark = look is not None and sum(look.around_eye(side)) < 330
        if pose.eyes == "happy":
            c.line(ellipse(x, h.eye_y + 0.014, r * 1.0, r * 0.9, 195, 345, 12), CREAM if dark else INK, 0.02)
        else:
            if dark:
                c.fill(ellipse(x, h.eye_y, r * 1.3, r * 1.55, n=24), CREAM)
            c.fill(ellipse(x, h.eye_y, r * 0.9, r * 1.15, n=24), INK)
            c.dot(x + 0.012, h.eye_y - 0.015, r * 0.36, (255, 255, 255))


def _cheeks(c: Canvas, h: Head, look: Look, dy: float = 0.065, dx: float = 0.15) -> None:
    for side in (-1, 1):
        c.fill(ellipse(h.cx + side * dx, h.eye_y + dy, 0.032, 0.021, n=16), mix(look.main, PINK, 0.7))


def _mouth(c: Canvas, x: float, y: float, r: float, open_: bool = False) -> None:
    if open_:
        c.fill(ellipse(x, y, r, r * 1.3, 0, 180, 14), (190, 66, 84), INK, 0.01)
    else:
        for side in (-1, 1):
            c.line(ellipse(x + side * r * 0.75, y, r * 0.75, r * 0.7, 20, 160, 10), INK, 0.012)


def _head(c: Canvas, h: Head, look: Look, shape) -> None:
    """Fills a head with its coat: halves and masks stay inside its edge."""
    c.fill(shape, look.main)
    if look.second is not None and look.pattern == "half":
        c.inside(shape, [[(h.cx, 0), (1, 0), (1, 1), (h.cx, 1)]], look.second)
    if look.second is not None and look.pattern == "mask":
        c.inside(shape, [ellipse(h.cx, 0.25, h.rx * 1.25, 0.19)], look.second)
    c.fill_outline(shape, look.outline)


def _torso(c: Canvas, look: Look, pose: Pose, rx: float = 0.15, ry: float = 0.165, legs: bool = True) -> None:
    """Body, belly, feet and arms shared by the furry ones."""
    limb, line = look.of("limbs"), look.outline
    body = rounded(0.5, 0.745, rx, ry, 2.4)
    c.fill(body, look.of("body"))
    if look.pattern == "half" and look.second is not None:
        c.inside(body, [[(0.5, 0), (0, 0), (0, 1), (0.5, 1)]], look.second)
    c.fill_outline(body, line)
    if look.pattern != "half":
        c.fill(ellipse(0.5, 0.775, rx * 0.6, ry * 0.62), look.of("belly"))
    if legs:
        for side in (-1, 1):
            c.fill(ellipse(0.5 + side * 0.095, 0.905, 0.07, 0.042), limb, line)
    _arms(c, pose, limb, line, rx)


def _arms(c: Canvas, pose: Pose, colour: RGB, line: RGB, rx: float = 0.15) -> None:
    for side in (-1, 1):
        up = pose.arms == "cheer" or (pose.arms == "wave" and side == 1)
        x = 0.5 + side * (rx + (0.055 if up else 0.005))
        with c.transformed((x, 0.7), degrees=side * (50 if up else -16)):
            c.fill(ellipse(x, 0.7 + (-0.015 if up else 0.02), 0.042, 0.095, n=24), colour, line)


def dog(c: Canvas, look: Look, pose: Pose, h: Head) -> None:
    for side in (-1, 1):
        ear = smooth([(h.cx + side * x, y) for x, y in ((0.13, 0.25), (0.25, 0.27), (0.315, 0.42), (0.28, 0.56), (0.21, 0.5), (0.19, 0.36))])
        tone = look.second if look.second is not None and look.pattern == "half" and side == 1 else look.of("ears")
        c.fill(ear, mix(tone, INK, 0.22), look.outline)
    skull = smooth(
        [(h.cx + x, y) for x, y in ((-0.14, 0.26), (0, 0.225), (0.14, 0.26), (0.215, 0.42), (0.17, 0.57), (0, 0.625), (-0.17, 0.57), (-0.215, 0.42))]
    )
    _head(c, h, look, skull)
    c.fill(rounded(h.cx, 0.515, 0.105, 0.08, 2.5), look.of("muzzle"))
    _eyes(c, h, pose, look)
    c.fill(ellipse(h.cx, 0.475, 0.046, 0.032, n=20), INK)
    c.fill(smooth([(h.cx - 0.032, 0.545), (h.cx + 0.032, 0.545), (h.cx + 0.028, 0.6), (h.cx, 0.615), (h.cx - 0.028, 0.6)]), (240, 96, 112), INK, 0.008)
    _mouth(c, h.cx, 0.525, 0.045)


def cat(c: Canvas, look: Look, pose: Pose, h: Head) -> None:
    for side in (-1, 1):
        tone = look.second if look.second is not None and look.pattern == "half" and side == 1 else look.of("ears")
        ear = [(h.cx + side * 0.225, 0.385), (h.cx + side * 0.215, 0.135), (h.cx + side * 0.055, 0.275)]
        c.fill(ear, tone, look.outline)
        c.fill([(h.cx + side * 0.19, 0.3), (h.cx + side * 0.19, 0.195), (h.cx + side * 0.115, 0.265)], mix(PINK, look.main, 0.2))
    _head(c, h, look, rounded(h.cx, 0.43, 0.24, 0.19, 2.5))
    c.fill(ellipse(h.cx, 0.515, 0.085, 0.06), look.of("muzzle"))
    for side in (-1, 1):
        for dy in (-0.015, 0.03):
            c.line([(h.cx + side * 0.15, 0.5 + dy), (h.cx + side * 0.285, 0.49 + dy * 2.2)], look.outline, 0.01)
    _eyes(c, h, pose, look, 0.037)
    c.fill([(h.cx - 0.026, 0.478), (h.cx + 0.026, 0.478), (h.cx, 0.508)], (226, 84, 110))
    _mouth(c, h.cx, 0.515, 0.042)


def rabbit(c: Canvas, look: Look, pose: Pose, h: Head) -> None:
    for side in (-1, 1):
        with c.transformed((h.cx + side * 0.09, 0.3), degrees=side * (12 if side < 0 or pose.arms != "wave" else 38)):
            tone = look.second if look.second is not None and look.pattern == "half" and side == 1 else look.of("ears")
            c.fill(ellipse(h.cx + side * 0.095, 0.19, 0.062, 0.135), tone, look.outline)
            c.fill(ellipse(h.cx + side * 0.095, 0.2, 0.03, 0.1), mix(PINK, look.main, 0.25))
    _head(c, h, look, rounded(h.cx, 0.445, 0.215, 0.175, 2.3))
    c.fill(ellipse(h.cx, 0.525, 0.09, 0.06), look.of("muzzle"))
    _cheeks(c, h, look)
    _eyes(c, h, pose, look)
    c.fill(rounded(h.cx, 0.565, 0.03, 0.03, 6), (255, 255, 255), INK, 0.008)
    c.fill(ellipse(h.cx, 0.49, 0.026, 0.018, n=16), (226, 84, 110))
    _mouth(c, h.cx, 0.522, 0.042)


def bear(c: Canvas, look: Look, pose: Pose, h: Head) -> None:
    for side in (-1, 1):
        tone = look.second if look.second is not None and look.pattern == "half" and side == 1 else look.of("ears")
        c.fill(ellipse(h.cx + side * 0.185, 0.265, 0.085, 0.085), tone, look.outline)
        c.fill(ellipse(h.cx + side * 0.185, 0.27, 0.045, 0.045), mix(tone, INK, 0.3))
    _head(c, h, look, rounded(h.cx, 0.43, 0.24, 0.195, 2.2))
    c.fill(ellipse(h.cx, 0.51, 0.115, 0.09), look.of("muzzle"))
    _eyes(c, h, pose, look, 0.03)
    c.fill(ellipse(h.cx, 0.475, 0.05, 0.034, n=20), INK)
    c.line([(h.cx, 0.49), (h.cx, 0.535)], INK, 0.012)
    _mouth(c, h.cx, 0.535, 0.042)


def bird(c: Canvas, look: Look, pose: Pose, h: Head) -> None:
    for dx in (-0.045, 0.0, 0.045):
        c.line([(h.cx, 0.27), (h.cx + dx * 1.4, 0.175 + abs(dx) * 0.6)], look.of("ears"), 0.042)
    _head(c, h, look, ellipse(h.cx, 0.43, 0.21, 0.185))
    for side in (-1, 1):
        c.fill(ellipse(h.cx + side * h.eye_dx, h.eye_y + 0.005, 0.062, 0.066), (255, 255, 255))
    _cheeks(c, h, look, 0.09, 0.14)
    _eyes(c, h, pose, None)
    c.fill([(h.cx - 0.085, 0.475), (h.cx, 0.445), (h.cx + 0.085, 0.475), (h.cx, 0.575)], (255, 176, 40), (150, 84, 20), 0.012)
    c.line([(h.cx - 0.07, 0.485), (h.cx, 0.5), (h.cx + 0.07, 0.485)], (150, 84, 20), 0.01)


def frog(c: Canvas, look: Look, pose: Pose, h: Head) -> None:
    for side in (-1, 1):
        c.fill(ellipse(h.cx + side * h.eye_dx, h.eye_y, 0.09, 0.09), look.of("ears"), look.outline)
    _head(c, h, look, rounded(h.cx, 0.465, 0.265, 0.155, 2.4))
    c.inside(rounded(h.cx, 0.465, 0.255, 0.145, 2.4), [ellipse(h.cx, 0.64, 0.24, 0.12)], look.of("muzzle"))
    for side in (-1, 1):
        c.fill(ellipse(h.cx + side * h.eye_dx, h.eye_y, 0.062, 0.062), (255, 255, 255))
    _eyes(c, h, pose, None, 0.036)
    _cheeks(c, h, look, 0.145, 0.19)
    c.line(ellipse(h.cx, 0.46, 0.17, 0.075, 18, 162, 18), INK, 0.018)
    for side in (-1, 1):
        c.dot(h.cx + side * 0.025, 0.455, 0.008, look.outline)


def robot(c: Canvas, look: Look, pose: Pose, h: Head) -> None:
    c.line([(h.cx, 0.26), (h.cx, 0.17)], look.outline, 0.022)
    c.dot(h.cx, 0.155, 0.036, (255, 210, 70) if look.main[2] > 90 or look.main[1] < 120 else (90, 220, 240))
    for side in (-1, 1):
        c.fill(rounded(h.cx + side * 0.25, 0.42, 0.035, 0.07, 6), look.of("ears"), look.outline)
    _head(c, h, look, rounded(h.cx, 0.42, 0.235, 0.175, 9))
    c.fill(rounded(h.cx, 0.425, 0.185, 0.125, 8), (38, 44, 74))
    glow = (130, 244, 255)
    for side in (-1, 1):
        x = h.cx + side * h.eye_dx
        if pose.eyes == "happy":
            c.line(ellipse(x, h.eye_y + 0.016, 0.04, 0.036, 190, 350, 12), glow, 0.024)
        else:
            c.fill(rounded(x, h.eye_y, 0.036, 0.044, 5), glow)
    c.line([(h.cx - 0.055, 0.505), (h.cx + 0.055, 0.505)], glow, 0.02)


def fish(c: Canvas, look: Look, pose: Pose, h: Head) -> None:
    second = look.of("limbs")
    c.fill(smooth([(0.66, 0.6), (0.79, 0.48), (0.89, 0.41), (0.85, 0.6), (0.89, 0.79), (0.79, 0.72)]), mix(second, INK, 0.1), look.outline)
    c.fill(smooth([(0.42, 0.36), (0.56, 0.24), (0.68, 0.3), (0.66, 0.45)]), mix(look.of("ears"), INK, 0.1), look.outline)
    shape = smooth([(0.17, 0.58), (0.24, 0.42), (0.44, 0.345), (0.64, 0.42), (0.79, 0.6), (0.64, 0.77), (0.44, 0.84), (0.24, 0.76)])
    c.fill(shape, look.main)
    if look.second is not None and look.pattern in ("half", "split"):
        c.inside(shape, [[(0.52, 0), (1, 0), (1, 1), (0.52, 1)]] if look.pattern == "half" else [[(0, 0.6), (1, 0.6), (1, 1), (0, 1)]], look.second)
    elif look.pattern == "mask" and look.second is not None:
        c.inside(shape, [[(0, 0), (1, 0), (1, 0.5), (0, 0.5)]], look.second)
    else:
        c.inside(shape, [ellipse(0.44, 0.83, 0.27, 0.14)], look.of("belly"))
    c.fill_outline(shape, look.outline)
    lift = -0.06 if pose.arms != "down" else 0.04
    c.fill(smooth([(0.55, 0.62), (0.69, 0.6 + lift), (0.68, 0.69 + lift), (0.6, 0.7)]), mix(second, INK, 0.1), look.outline, 0.012)
    for side in (-1, 1):
        c.fill(ellipse(h.cx + side * h.eye_dx, h.eye_y, 0.072, 0.076), (255, 255, 255), look.outline, 0.01)
    _eyes(c, h, pose, None, 0.038)
    c.fill(ellipse(h.cx, 0.665, 0.05, 0.034), (226, 92, 104), look.outline, 0.014)
    for x, y, r in ((0.1, 0.4, 0.028), (0.055, 0.3, 0.02)):
        c.fill(ellipse(x, y, r, r), (214, 240, 252), (120, 170, 210), 0.01)


def _tail(c: Canvas, name: str, look: Look) -> None:
    tone = look.of("limbs")
    if name == "cat":
        for colour, width in ((look.outline, 0.07), (tone, 0.042)):
            c.line(smooth([(0.6, 0.87), (0.76, 0.86), (0.8, 0.74), (0.76, 0.64), (0.83, 0.58)], closed=False), colour, width)
    elif name == "dog":
        c.fill(smooth([(0.6, 0.84), (0.72, 0.78), (0.8, 0.66), (0.84, 0.72), (0.76, 0.85)]), tone, look.outline)
    elif name == "rabbit":
        c.fill(ellipse(0.67, 0.83, 0.055, 0.055), look.soft, look.outline)


def _body(c: Canvas, name: str, look: Look, pose: Pose) -> None:
    _tail(c, name, look)
    if name == "robot":
        for side in (-1, 1):
            c.fill(rounded(0.5 + side * 0.075, 0.88, 0.045, 0.06, 6), look.of("limbs"), look.outline)
        body = rounded(0.5, 0.735, 0.155, 0.13, 8)
        c.fill(body, look.of("body"))
        if look.pattern == "half" and look.second is not None:
            c.inside(body, [[(0.5, 0), (0, 0), (0, 1), (0.5, 1)]], look.second)
        c.fill_outline(body, look.outline)
        c.fill(rounded(0.5, 0.755, 0.085, 0.06, 6), look.of("belly"), look.outline, 0.01)
        c.dot(0.47, 0.755, 0.02, (236, 80, 80))
        c.dot(0.53, 0.755, 0.02, (80, 200, 120))
        _arms(c, pose, look.of("limbs"), look.outline)
    elif name == "bird":
        for side in (-1, 1):
            c.line([(0.5 + side * 0.06, 0.86), (0.5 + side * 0.07, 0.925)], (255, 176, 40), 0.026)
            c.line([(0.5 + side * 0.03, 0.925), (0.5 + side * 0.12, 0.925)], (255, 176, 40), 0.026)
        _torso(c, look, pose, 0.17, 0.16, legs=False)
    elif name == "frog":
        for side in (-1, 1):
            c.fill(ellipse(0.5 + side * 0.17, 0.83, 0.085, 0.085), look.of("limbs"), look.outline)
        _torso(c, look, pose, 0.16, 0.15)
    else:
        _torso(c, look, pose)


HEADS = {
    "dog": Head(eye_y=0.4, top=0.25),
    "cat": Head(eye_y=0.42, top=0.255),
    "rabbit": Head(eye_y=0.425, top=0.285, side=0.215),
    "bird": Head(eye_y=0.405, eye_dx=0.1, top=0.265, side=0.205),
    "frog": Head(cy=0.46, eye_y=0.315, eye_dx=0.145, top=0.25, side=0.265),
    "robot": Head(eye_y=0.41, eye_dx=0.085, top=0.25, side=0.25),
    "bear": Head(eye_y=0.4, eye_dx=0.09, top=0.24),
    "fish": Head(cx=0.4, cy=0.56, eye_y=0.535, eye_dx=0.095, top=0.37, side=0.2, neck=0.76),
}
CLASSES = tuple(HEADS)
FACES = {"dog": dog, "cat": cat, "rabbit": rabbit, "bird": bird, "frog": frog, "robot": robot, "bear": bear, "fish": fish}


def draw(c: Canvas, name: str, look: Look, pose: Pose, wear=None) -> None:
    """Draws the creature ``name``; ``wear(canvas, head, layer)`` adds the accessory at layer ``back``, ``neck`` or ``front``."""
    h = HEADS[name]
    if name != "fish":
        _body(c, name, look, pose)
    if wear:
        wear(c, h, "back")
    FACES[name](c, look, pose, h)
    if wear:
        wear(c, h, "front")
        wear(c, h, "neck")
