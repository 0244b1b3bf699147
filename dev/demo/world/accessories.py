"""What a creature can wear. Colours contrast with the coat, and every piece is outlined, so that 64 pixels suffice to tell them."""

from __future__ import annotations

from .anatomy import INK, Head
from .canvas import RGB, Canvas, ellipse, mix, rounded, smooth

PHRASES = {
    "none": "",
    "hat": "wearing a hat",
    "glasses": "wearing glasses",
    "scarf": "wearing a scarf",
    "headphones": "wearing headphones",
}
ACCESSORIES = tuple(PHRASES)


def _warm(coat: RGB) -> bool:
    return coat[0] > coat[2] + 25


def hat(c: Canvas, h: Head, coat: RGB) -> None:
    """A top hat with a ribbon."""
    felt, ribbon = (58, 50, 92), (250, 206, 84)
    with c.transformed((h.cx, h.top), degrees=-4):
        c.fill([(h.cx - 0.115, h.top + 0.01), (h.cx - 0.13, h.top - 0.175), (h.cx + 0.13, h.top - 0.175), (h.cx + 0.115, h.top + 0.01)], felt, INK)
        c.fill([(h.cx - 0.118, h.top - 0.005), (h.cx - 0.122, h.top - 0.06), (h.cx + 0.122, h.top - 0.06), (h.cx + 0.118, h.top - 0.005)], ribbon)
        c.fill(rounded(h.cx, h.top + 0.015, 0.2, 0.03, 3), felt, INK)


def glasses(c: Canvas, h: Head, coat: RGB) -> None:
    """Round sunglasses: dark lenses with a light streak in a pale frame."""
    frame, lens = (255, 250, 240), (36, 40, 70)
    r = 0.083
    c.line([(h.cx - h.eye_dx, h.eye_y - 0.015), (h.cx + h.eye_dx, h.eye_y - 0.015)], INK, 0.03)
    for side in (-1, 1):
        x = h.cx + side * h.eye_dx
        c.line([(x + side * r, h.eye_y - 0.02), (h.cx + side * (h.side - 0.005), h.eye_y - 0.035)], INK, 0.022)
        c.fill(ellipse(x, h.eye_y, r, r), frame, INK, 0.018)
        c.fill(ellipse(x, h.eye_y, r * 0.72, r * 0.72), lens)
        c.line([(x - 0.03, h.eye_y + 0.012), (x + 0.012, h.eye_y - 0.032)], (150, 190, 230), 0.018)


def scarf(c: Canvas, h: Head, coat: RGB) -> None:
    """A striped scarf with one end hanging."""
    wool = (44, 92, 190) if _warm(coat) else (222, 56, 62)
    pale, line = mix(wool, (255, 255, 255), 0.82), mix(wool, INK, 0.6)
    w = h.side * 0.86
    end = [(h.cx + 0.03, h.neck + 0.03), (h.cx + 0.125, h.neck + 0.02), (h.cx + 0.14, h.neck + 0.2), (h.cx + 0.045, h.neck + 0.21)]
    c.fill(end, wool, line)
    c.fill([(h.cx + 0.04, h.neck + 0.12), (h.cx + 0.132, h.neck + 0.11), (h.cx + 0.136, h.neck + 0.155), (h.cx + 0.043, h.neck + 0.165)], pale)
    upper = [(h.cx - w, h.neck - 0.045), (h.cx, h.neck - 0.01), (h.cx + w, h.neck - 0.045)]
    band = smooth([*upper, (h.cx + w * 0.94, h.neck + 0.03), (h.cx, h.neck + 0.068), (h.cx - w * 0.94, h.neck + 0.03)])
    c.fill(band, wool)
    c.inside(band, [[(h.cx + x, 0), (h.cx + x + 0.045, 0), (h.cx + x + 0.03, 1), (h.cx + x - 0.015, 1)] for x in (-0.155, -0.06, 0.04, 0.135)], pale)
    c.fill_outline(band, line)


def headphones(c: Canvas, h: Head, coat: RGB) -> None:
    """A band over the head and two padded cups."""
    shell, pad = ((32, 178, 190), (246, 250, 250)) if _warm(coat) else ((250, 140, 40), (255, 244, 220))
    y = max(h.cy - 0.01, h.eye_y + 0.02)
    arc = ellipse(h.cx, y, h.side + 0.02, y - h.top + 0.035, 184, 356, 28)
    c.line(arc, INK, 0.062)
    c.line(arc, shell, 0.036)
    for side in (-1, 1):
        x = h.cx + side * (h.side + 0.015)
        c.fill(rounded(x, y + 0.02, 0.058, 0.095, 3), shell, INK)
        c.fill(rounded(x - side * 0.012, y + 0.02, 0.026, 0.058, 3), pad)


def wear(name: str, coat: RGB):
    """A painter ``paint(canvas, head, layer)`` of accessory ``name`` for a creature of colour ``coat``; None for 'none'."""
    if name == "none":
        return None
    piece, at = {"hat": (hat, "front"), "glasses": (glasses, "front"), "scarf": (scarf, "neck"), "headphones": (headphones, "front")}[name]

    def paint(c: Canvas, h: Head, layer: str) -> None:
        if layer == at:
            piece(c, h, coat)

    return paint
