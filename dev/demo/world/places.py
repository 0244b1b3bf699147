"""The places of the world: each has two moods, so that a prompt does not fix the picture, and a fixed layout, so that a small model can learn it."""

from __future__ import annotations

from .canvas import Canvas, ellipse, mix, rounded, smooth

PHRASES = {
    "plain": "",
    "beach": "on the beach",
    "forest": "in the forest",
    "snow": "in the snow",
    "city": "in the city",
    "moon": "on the moon",
    "kitchen": "in the kitchen",
}
PLACES = tuple(PHRASES)
MOODS = 2


def _cloud(c: Canvas, x: float, y: float, r: float, colour) -> None:
    for dx, dy, k in ((-1.1, 0.15, 0.7), (0, 0, 1.0), (1.1, 0.15, 0.75)):
        c.fill(ellipse(x + dx * r, y + dy * r, k * r, k * r * 0.8, n=20), colour)


def plain(c: Canvas, mood: int) -> None:
    """A photographer's paper roll, warm or cool."""
    wall, floor = (((236, 224, 204), (222, 206, 182)), ((206, 214, 226), (188, 198, 214)))[mood]
    c.gradient(mix(wall, (255, 255, 255), 0.35), wall, 0, 0.8)
    c.gradient(floor, mix(floor, (90, 80, 90), 0.18), 0.8, 1.0)


def beach(c: Canvas, mood: int) -> None:
    """Sea, sand and a palm; noon or sunset."""
    if mood == 0:
        c.gradient((112, 196, 244), (198, 236, 252), 0, 0.52)
        c.dot(0.86, 0.13, 0.085, (255, 240, 150))
        _cloud(c, 0.5, 0.09, 0.055, (250, 253, 255))
        sea, foam, sand = (32, 150, 200), (224, 246, 250), (248, 220, 156)
    else:
        c.gradient((250, 134, 106), (255, 214, 140), 0, 0.52)
        c.dot(0.8, 0.44, 0.12, (255, 244, 178))
        sea, foam, sand = (96, 104, 172), (250, 206, 178), (236, 190, 140)
    c.fill([(0, 0.5), (1, 0.5), (1, 0.75), (0, 0.75)], sea)
    c.line([(0.06, 0.57), (0.2, 0.57)], mix(sea, foam, 0.5), 0.016)
    c.line([(0.8, 0.61), (0.96, 0.61)], mix(sea, foam, 0.5), 0.016)
    c.fill(smooth([(-0.1, 0.71), (0.2, 0.68), (0.5, 0.73), (0.8, 0.69), (1.1, 0.73), (1.1, 1.1), (-0.1, 1.1)]), foam)
    c.fill(smooth([(-0.1, 0.75), (0.2, 0.72), (0.5, 0.77), (0.8, 0.73), (1.1, 0.77), (1.1, 1.1), (-0.1, 1.1)]), sand)
    c.line(smooth([(0.08, 0.8), (0.13, 0.5), (0.1, 0.22)], closed=False), (134, 92, 60), 0.042)
    leaf = (44, 146, 84) if mood == 0 else (62, 96, 88)
    for dx, dy in ((0.2, 0.06), (0.17, -0.08), (-0.15, 0.05), (-0.12, -0.1), (0.05, 0.18)):
        c.fill(smooth([(0.1, 0.2), (0.1 + dx * 0.55, 0.15 + dy * 0.4), (0.1 + dx, 0.2 + dy), (0.1 + dx * 0.5, 0.21 + dy * 0.6)]), leaf)
    c.dot(0.88, 0.9, 0.03, (242, 130, 120))


def forest(c: Canvas, mood: int) -> None:
    """Firs and round crowns; summer or autumn."""
    sky, back, leaves, grass = (
        ((196, 232, 196), (88, 156, 100), ((44, 116, 66), (62, 138, 70)), (112, 176, 84)),
        ((250, 226, 184), (176, 132, 84), ((196, 92, 42), (216, 140, 48)), (164, 138, 74)),
    )[mood]
    c.gradient(sky, mix(sky, back, 0.4), 0, 0.8)
    for x in (0.3, 0.52, 0.72):
        c.fill([(x - 0.13, 0.72), (x, 0.16), (x + 0.13, 0.72)], back)
    c.fill(smooth([(-0.1, 0.74), (0.3, 0.7), (0.7, 0.73), (1.1, 0.7), (1.1, 1.1), (-0.1, 1.1)]), grass)
    for x in (0.07, 0.95):
        c.fill([(x - 0.025, 0.5), (x + 0.025, 0.5), (x + 0.03, 0.8), (x - 0.03, 0.8)], (104, 72, 52))
    for k, (x, y, r) in enumerate(((0.05, 0.34, 0.16), (0.95, 0.3, 0.17))):
        c.fill(ellipse(x, y + 0.12, r, r * 0.9), mix(leaves[k], (30, 40, 40), 0.22))
        c.fill(ellipse(x, y, r * 0.9, r * 1.05), leaves[k])
    c.fill([(0.11, 0.93), (0.15, 0.93), (0.15, 0.85), (0.11, 0.85)], (246, 236, 220))
    c.fill(ellipse(0.13, 0.855, 0.06, 0.05, 180, 360), (214, 62, 56))


def snow(c: Canvas, mood: int) -> None:
    """Hills, a fir and a snowfall; day or night."""
    sky, low, hill, ground = (
        ((142, 190, 236), (208, 228, 248), (186, 208, 236), (222, 234, 248)),
        ((44, 54, 112), (104, 124, 190), (136, 152, 206), (190, 204, 236)),
    )[mood]
    c.gradient(sky, low, 0, 0.72)
    c.fill([(0.5, 0.66), (0.78, 0.22), (1.08, 0.66)], hill)
    c.fill([(0.7, 0.345), (0.78, 0.22), (0.87, 0.345), (0.8, 0.4), (0.76, 0.35)], (246, 250, 255))
    c.fill(smooth([(-0.1, 0.68), (0.25, 0.6), (0.6, 0.69), (1.1, 0.62), (1.1, 1.1), (-0.1, 1.1)]), mix(ground, hill, 0.4))
    c.fill(smooth([(-0.1, 0.8), (0.3, 0.77), (0.7, 0.81), (1.1, 0.76), (1.1, 1.1), (-0.1, 1.1)]), ground)
    for y, w in ((0.34, 0.1), (0.46, 0.14), (0.58, 0.17)):
        c.fill([(0.12 - w, y + 0.15), (0.12, y - 0.08), (0.12 + w, y + 0.15)], (46, 112, 104))
        c.fill([(0.12 - w * 0.45, y + 0.02), (0.12, y - 0.08), (0.12 + w * 0.45, y + 0.02)], (240, 248, 255))
    for x, y in ((0.3, 0.12), (0.45, 0.06), (0.6, 0.16), (0.92, 0.14), (0.3, 0.4), (0.93, 0.52), (0.05, 0.1)):
        c.dot(x, y, 0.016, (255, 255, 255))


def city(c: Canvas, mood: int) -> None:
    """A skyline with lit windows; dusk or night."""
    sky, low, house, lamp = (
        ((72, 60, 140), (244, 150, 150), (66, 58, 112), (255, 214, 120)),
        ((20, 24, 62), (66, 74, 140), (40, 42, 82), (255, 226, 130)),
    )[mood]
    c.gradient(sky, low, 0, 0.78)
    for x0, x1, y in ((0.22, 0.42, 0.32), (0.44, 0.6, 0.22), (0.62, 0.78, 0.36)):
        c.fill([(x0, y), (x1, y), (x1, 0.8), (x0, 0.8)], mix(house, low, 0.45))
    for x0, x1, y in ((-0.02, 0.2, 0.16), (0.8, 1.02, 0.24)):
        c.fill([(x0, y), (x1, y), (x1, 0.8), (x0, 0.8)], house)
        for row in range(5):
            for col in range(2):
                x, yy = x0 + 0.065 + col * 0.09, y + 0.07 + row * 0.105
                pane = lamp if (row + col) % 3 else mix(house, lamp, 0.2)
                c.fill([(x - 0.025, yy - 0.03), (x + 0.025, yy - 0.03), (x + 0.025, yy + 0.03), (x - 0.025, yy + 0.03)], pane)
    c.dot(0.32, 0.14, 0.05, (255, 246, 214))
    c.gradient((104, 102, 124), (78, 78, 100), 0.78, 1.0)
    for x in (0.02, 0.4, 0.78):
        c.fill([(x, 0.955), (x + 0.2, 0.955), (x + 0.2, 0.985), (x, 0.985)], (240, 226, 170))


def moon(c: Canvas, mood: int) -> None:
    """Craters under the stars; the Earth or a ringed planet in the sky."""
    c.gradient((8, 8, 26), (28, 26, 60), 0, 0.75)
    for x, y in ((0.08, 0.1), (0.22, 0.26), (0.36, 0.08), (0.5, 0.14), (0.1, 0.46), (0.64, 0.08), (0.92, 0.5), (0.94, 0.06), (0.3, 0.48), (0.7, 0.5)):
        c.dot(x, y, 0.013, (255, 252, 226))
    if mood == 0:
        c.dot(0.84, 0.24, 0.115, (58, 128, 222))
        c.fill(smooth([(0.77, 0.2), (0.84, 0.15), (0.88, 0.2), (0.83, 0.26)]), (92, 190, 106))
        c.fill(smooth([(0.86, 0.29), (0.92, 0.25), (0.9, 0.32)]), (92, 190, 106))
    else:
        c.fill(ellipse(0.83, 0.24, 0.17, 0.045), (230, 196, 150))
        c.dot(0.83, 0.23, 0.095, (226, 138, 92))
        c.fill(ellipse(0.83, 0.25, 0.16, 0.035, 10, 170), (246, 220, 176))
    c.fill(smooth([(-0.1, 0.74), (0.25, 0.69), (0.6, 0.74), (1.1, 0.68), (1.1, 1.1), (-0.1, 1.1)]), (172, 170, 186))
    for x, y, r in ((0.12, 0.84, 0.075), (0.85, 0.8, 0.06), (0.9, 0.94, 0.08)):
        c.fill(ellipse(x, y, r, r * 0.45), (132, 130, 152))
        c.fill(ellipse(x, y + 0.012, r * 0.82, r * 0.3), (150, 148, 168))


def kitchen(c: Canvas, mood: int) -> None:
    """A window, a shelf with cups and a chequered floor; mint or yellow walls."""
    wall, cup = (((176, 224, 204), (236, 110, 100)), ((252, 222, 146), (84, 150, 200)))[mood]
    c.gradient(wall, mix(wall, (255, 255, 255), 0.2), 0, 0.79)
    c.fill(rounded(0.17, 0.25, 0.14, 0.17, 8), (255, 255, 255))
    c.fill(rounded(0.17, 0.25, 0.11, 0.14, 8), (134, 200, 242))
    c.line([(0.17, 0.11), (0.17, 0.39)], (255, 255, 255), 0.022)
    c.line([(0.06, 0.25), (0.28, 0.25)], (255, 255, 255), 0.022)
    c.fill([(0.68, 0.3), (1, 0.3), (1, 0.345), (0.68, 0.345)], (158, 104, 68))
    for x, k in ((0.77, 0), (0.9, 0.55)):
        c.fill(rounded(x, 0.245, 0.042, 0.052, 5), mix(cup, (255, 255, 255), k))
    wood = (190, 128, 84)
    c.fill([(0, 0.6), (0.22, 0.6), (0.22, 0.8), (0, 0.8)], wood)
    c.fill([(0.8, 0.6), (1, 0.6), (1, 0.8), (0.8, 0.8)], wood)
    c.fill([(0, 0.57), (0.24, 0.57), (0.24, 0.61), (0, 0.61)], (244, 240, 232))
    c.fill([(0.78, 0.57), (1, 0.57), (1, 0.61), (0.78, 0.61)], (244, 240, 232))
    for row, (y0, y1) in enumerate(((0.78, 0.86), (0.86, 1.0))):
        for col in range(5):
            tone = (250, 246, 238) if (row + col) % 2 else (206, 130, 104)
            c.fill([(col / 5, y0), (col / 5 + 0.2, y0), (col / 5 + 0.2, y1), (col / 5, y1)], tone)


DRAW = {"plain": plain, "beach": beach, "forest": forest, "snow": snow, "city": city, "moon": moon, "kitchen": kitchen}
