"""Rooms: a box in one-point perspective with objects on the back wall and furniture on the floor."""

from __future__ import annotations

import numpy as np

from segquant.scenes import objects
from segquant.scenes.canvas import Canvas, Material, Point, bricks, checks, planks, stripes

# Objects on the back wall and their probabilities.
WALL_OBJECTS = {"window": 0.24, "painting": 0.22, "door": 0.13, "shelf": 0.14, "cabinet": 0.13, "gap": 0.14}


def room(c: Canvas) -> None:
    rng, w, h = c.rng, c.width, c.height
    left, right = w * rng.uniform(-0.05, 0.25), w * rng.uniform(0.75, 1.05)
    top, foot = h * rng.uniform(-0.05, 0.2), h * rng.uniform(0.52, 0.7)
    _shell(c, left, top, right, foot)

    # Objects on the back wall, side by side.
    x, wall = left + rng.uniform(2, 25), foot - max(top, 0)
    while x < right - 22:
        width = rng.uniform(30, 80)
        kind = rng.choice(list(WALL_OBJECTS), p=list(WALL_OBJECTS.values()))
        end = min(x + width, right - 2)
        if kind == "window":
            _window(c, x, end, max(top, 0) + wall * rng.uniform(0.06, 0.2), foot - wall * rng.uniform(0.2, 0.4))
        elif kind == "painting":
            y = max(top, 0) + wall * rng.uniform(0.1, 0.32)
            _painting(c, x, y, end, y + wall * rng.uniform(0.2, 0.38))
        elif kind == "door":
            objects.door(c, x, foot, min(width, 42), wall * rng.uniform(0.68, 0.86))
        elif kind == "shelf":
            _shelf(c, x, foot - wall * rng.uniform(0.45, 0.85), end, foot - rng.uniform(0, 0.3) * wall)
        elif kind == "cabinet":
            _cabinet(c, x, foot - wall * rng.uniform(0.3, 0.7), end, foot + 4)
        x = end + rng.uniform(6, 24)

    if rng.random() < 0.6:
        x, y, half = rng.uniform(0.25, 0.75) * w, (foot + h) / 2 + rng.normal(0, 9), rng.uniform(0.2, 0.4) * w
        pattern = [None, checks(rng.uniform(8, 18)), stripes(rng.uniform(8, 16), rng.uniform(0, 3))][rng.integers(3)]
        material = Material(c.any_color(50, 205), 9, 7, pattern=pattern, pattern_strength=rng.uniform(8, 26))
        depth = (h - foot) * rng.uniform(0.3, 0.5)
        c.trapezoid("rug", x, y - depth, 0.7 * half, y + depth, half, material)

    furniture = {_bed: 0.15, _sofa: 0.16, _table: 0.18, _chair: 0.2, _lamp: 0.14, _plant: 0.1, _person: 0.07}
    for y in np.sort(rng.uniform(foot + 6, h * 1.06, rng.integers(3, 8))):
        t = (y - foot) / (h - foot)
        paint = list(furniture)[rng.choice(len(furniture), p=list(furniture.values()))]
        paint(c, rng.uniform(0.05, 0.95) * w, y, h * (0.3 + 0.2 * t))
    if rng.random() < 0.5:  # a hanging lamp
        x, y, s = rng.uniform(0.2, 0.8) * w, h * rng.uniform(0.08, 0.26), h * rng.uniform(0.05, 0.11)
        c.line("lamp", [(x, -1), (x, y)], 1.6, Material(c.color((50, 48, 46)), 2))
        c.trapezoid("lamp", x, y, 0.5 * s, y + 0.8 * s, s, _lampshade(c))


def _shell(c: Canvas, left: float, top: float, right: float, foot: float) -> None:
    rng, w, h = c.rng, c.width, c.height
    papers = [None, stripes(rng.uniform(8, 20)), bricks(rng.uniform(6, 11)), planks(rng.uniform(12, 22))]
    pattern = papers[rng.choice(4, p=[0.55, 0.2, 0.12, 0.13])]
    bases = [(206, 198, 182), (176, 190, 196), (196, 170, 148), (158, 164, 146), (222, 220, 214)]
    color, strength = c.color(bases[rng.integers(5)], 16, 8), rng.uniform(3, 11)
    back = Material(color, 4, 6, pattern=pattern, pattern_strength=strength, shade=rng.uniform(-15, 25))
    side = Material(color * rng.uniform(0.76, 0.95), 4, 6, pattern=pattern, pattern_strength=strength)
    c.rectangle("wall", -1, -1, w, h, side)
    c.rectangle("wall", left, top, right, foot, back)
    ceiling = Material(c.color((218, 216, 210), 14, 5), 3, 5, shade=rng.uniform(-20, 20))
    rise = h * 0.25
    c.polygon("ceiling", [(left, top), (right, top), (w + 40, top - rise), (-40, top - rise)], ceiling)
    patterns = [planks(rng.uniform(9, 18)), checks(rng.uniform(14, 30)), None, planks(rng.uniform(7, 12), True)]
    boards = patterns[rng.integers(4)]
    bases = [(148, 110, 76), (172, 160, 146), (112, 96, 84), (186, 150, 108)]
    color, strength, shade = c.color(bases[rng.integers(4)], 18, 8), rng.uniform(4, 13), rng.uniform(-25, 10)
    floor = Material(color, 5, 7, pattern=boards, pattern_strength=strength, shade=shade)
    spread = (h - foot) * rng.uniform(0.7, 1.6)
    c.polygon("floor", [(left, foot), (right, foot), (right + spread, h), (left - spread, h)], floor)


def _lampshade(c: Canvas) -> Material:
    return Material(c.color((226, 206, 160), 22, 12), 3, 4, shade=20)


def _outline(x0: float, y0: float, x1: float, y1: float) -> list[Point]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]


def _window(c: Canvas, x0: float, x1: float, y0: float, y1: float) -> None:
    rng = c.rng
    skies = [(206, 220, 232), (150, 178, 210), (60, 66, 84)]
    outside = Material(c.color(skies[rng.integers(3)], 16), 3, 10, shade=rng.uniform(0, 45))
    c.rectangle("windowpane", x0, y0, x1, y1, outside)
    frame, middle = Material(c.color((212, 206, 196), 26), 3), (x0 + x1) / 2
    c.line("windowpane", _outline(x0, y0, x1, y1), 2.4, frame)
    c.line("windowpane", [(middle, y0), (middle, y1)], 2.4, frame)
    if rng.random() < 0.6:
        color, pattern = c.any_color(70, 225), stripes(rng.uniform(5, 9))
        cloth = Material(color, 4, 5, pattern=pattern, pattern_strength=rng.uniform(10, 22))
        drop, width = y1 + rng.uniform(4, 28), (x1 - x0) * rng.uniform(0.2, 0.36)
        for a, b in ((x0 - 4, x0 + width), (x1 - width, x1 + 4)):
            c.rectangle("curtain", a, y0 - 5, b, drop, cloth)


def _painting(c: Canvas, x0: float, y0: float, x1: float, y1: float) -> None:
    c.rectangle("painting", x0, y0, x1, y1, Material(c.color((88, 68, 46), 40), 4))
    scene = Material(c.any_color(40, 225), 5, 16, leaves=c.rng.uniform(0, 18), shade=c.rng.uniform(-50, 50))
    c.rectangle("painting", x0 + 3, y0 + 3, x1 - 3, y1 - 3, scene)
    for _ in range(2):
        x, y = c.rng.uniform(x0 + 8, max(x0 + 9, x1 - 8)), c.rng.uniform(y0 + 8, max(y0 + 9, y1 - 8))
        c.ellipse("painting", x - 4, y - 4, x + 4, y + 4, Material(c.any_color(), 4, 8))


def _shelf(c: Canvas, x0: float, y0: float, x1: float, y1: float) -> None:
    rng = c.rng
    wood = Material(c.color((124, 92, 62), 34, 12), 5, 6)
    c.rectangle("shelf", x0, y0, x1, y1, Material(wood.color * 0.55, 4, 5))
    levels = np.linspace(y0, y1, rng.integers(3, 6))
    for a, b in zip(levels[:-1], levels[1:]):  # books belong to the shelf, as mostly in ADE20K
        x = x0 + 3
        while x < x1 - 5:
            width = rng.uniform(2, 6)
            if rng.random() < 0.8:
                top = a + (b - a) * rng.uniform(0.15, 0.5)
                c.rectangle("shelf", x, top, x + width, b, Material(c.any_color(30, 215), 3))
            x += width + 0.6
    for y in levels:
        c.line("shelf", [(x0, y), (x1, y)], 2.4, wood)
    for x in (x0, x1):
        c.line("shelf", [(x, y0), (x, y1)], 3, wood)


def _cabinet(c: Canvas, x0: float, y0: float, x1: float, y1: float) -> None:
    rng = c.rng
    color = c.color([(134, 98, 66), (206, 200, 190), (96, 84, 76)][rng.integers(3)], 20)
    grain = stripes(rng.uniform(3, 6), 0.1)
    wood = Material(color, 4, 6, pattern=grain, pattern_strength=rng.uniform(0, 7))
    c.rectangle("cabinet", x0, y0, x1, y1, wood)
    line, knob = Material(wood.color * 0.55, 3), Material(c.color((196, 178, 128)), 2)
    columns, rows = rng.integers(1, 4), rng.integers(1, 4)
    for i in range(columns):
        for j in range(rows):
            a, b = x0 + (x1 - x0) * i / columns, y0 + (y1 - y0) * j / rows
            a2, b2 = x0 + (x1 - x0) * (i + 1) / columns, y0 + (y1 - y0) * (j + 1) / rows
            c.line("cabinet", _outline(a + 2, b + 2, a2 - 2, b2 - 2), 1.2, line)
            c.ellipse("cabinet", (a + a2) / 2 - 2, b + 6, (a + a2) / 2 + 2, b + 10, knob)


def _bed(c: Canvas, x: float, y: float, s: float) -> None:
    rng, w = c.rng, s * c.rng.uniform(0.6, 0.95)
    color, pattern = c.any_color(80, 228), stripes(rng.uniform(8, 20), rng.uniform(0, 3))
    cover = Material(color, 5, 8, pattern=pattern, pattern_strength=rng.uniform(0, 14))
    wood, pillow = Material(c.color((108, 78, 56), 34), 5, 5), Material(c.color((224, 220, 214), 12), 3, 6)
    c.shadow(x - 1.1 * w, y - 0.12 * s, x + 1.1 * w, y + 0.08 * s, 0.4)
    c.rectangle("bed", x - 0.85 * w, y - 0.95 * s, x + 0.85 * w, y - 0.5 * s, wood)
    c.trapezoid("bed", x, y - 0.62 * s, 0.8 * w, y - 0.26 * s, w, cover)
    c.rectangle("bed", x - w, y - 0.28 * s, x + w, y, Material(cover.color * 0.76, 5, 7))
    for k in (-0.4, 0.4):
        c.ellipse("bed", x + k * w - 0.3 * w, y - 0.74 * s, x + k * w + 0.3 * w, y - 0.55 * s, pillow)


def _sofa(c: Canvas, x: float, y: float, s: float) -> None:
    w = s * c.rng.uniform(0.55, 1.0)
    color = c.any_color(50, 205)
    cloth, dark = Material(color, 6, 7), Material(color * 0.74, 6, 6)
    c.shadow(x - 1.2 * w, y - 0.1 * s, x + 1.2 * w, y + 0.07 * s, 0.4)
    c.rectangle("sofa", x - w, y - 0.72 * s, x + w, y - 0.3 * s, cloth)
    c.rectangle("sofa", x - w, y - 0.4 * s, x + w, y - 0.24 * s, Material(np.clip(color * 1.13, 0, 250), 5, 6))
    c.rectangle("sofa", x - w, y - 0.25 * s, x + w, y, dark)
    arm = Material(color * 0.88, 6, 6)
    for side in (-1, 1):
        c.rectangle("sofa", x + side * w - 0.12 * s, y - 0.52 * s, x + side * w + 0.12 * s, y, arm)
    c.line("sofa", [(x, y - 0.7 * s), (x, y - 0.26 * s)], 1.4, dark)


def _wood(c: Canvas) -> Material:
    bases = [(138, 98, 62), (86, 64, 48), (196, 174, 142), (60, 60, 62)]
    return Material(c.color(bases[c.rng.integers(4)], 18), 4, 6)


def _table(c: Canvas, x: float, y: float, s: float) -> None:
    w, wood = s * c.rng.uniform(0.45, 0.85), _wood(c)
    legs = Material(wood.color * 0.72, 4, 4)
    for k, drop in ((-0.8, 0.1), (0.8, 0.1), (-0.95, 0.0), (0.95, 0.0)):
        c.line("table", [(x + k * w, y - 0.45 * s), (x + k * w, y - drop * s)], max(2.2, 0.05 * s), legs)
    c.trapezoid("table", x, y - 0.62 * s, 0.8 * w, y - 0.46 * s, 1.05 * w, wood)
    c.rectangle("table", x - 1.05 * w, y - 0.46 * s, x + 1.05 * w, y - 0.4 * s, legs)


def _chair(c: Canvas, x: float, y: float, s: float) -> None:
    s *= 0.9
    w, wood = s * c.rng.uniform(0.2, 0.28), _wood(c) if c.rng.random() < 0.6 else Material(c.any_color(40, 215), 4, 5)
    legs, lean = Material(wood.color * 0.72, 4, 4), c.rng.uniform(-0.06, 0.06) * s
    for k, drop in ((-0.85, 0.06), (0.85, 0.06), (-1.0, 0.0), (1.0, 0.0)):
        c.line("chair", [(x + k * w, y - 0.42 * s), (x + k * w, y - drop * s)], max(2, 0.045 * s), legs)
    c.trapezoid("chair", x, y - 0.52 * s, 0.85 * w, y - 0.4 * s, 1.1 * w, wood)
    for k in (-0.85, 0.85):
        c.line("chair", [(x + k * w, y - 0.5 * s), (x + k * w + lean, y - s)], max(2, 0.045 * s), legs)
    for level in (0.62, 0.76, 0.92):
        ends = [(x + k * w + lean, y - level * s) for k in (-0.85, 0.85)]
        c.line("chair", ends, max(2, 0.075 * s), wood)


def _lamp(c: Canvas, x: float, y: float, s: float) -> None:
    w = 0.17 * s * c.rng.uniform(0.8, 1.3)
    c.line("lamp", [(x, y), (x, y - 0.8 * s)], max(2, 0.028 * s), Material(c.color((74, 66, 58), 28), 3))
    c.ellipse("lamp", x - 0.8 * w, y - 0.04 * s, x + 0.8 * w, y + 0.03 * s, Material(c.color((74, 66, 58), 28), 3))
    c.trapezoid("lamp", x, y - 1.05 * s, 0.6 * w, y - 0.75 * s, w, _lampshade(c))


def _plant(c: Canvas, x: float, y: float, s: float) -> None:
    objects.plant(c, x, y, s * c.rng.uniform(0.5, 0.9), pot=True)


def _person(c: Canvas, x: float, y: float, s: float) -> None:
    objects.person(c, x, y, s * c.rng.uniform(0.9, 1.3))
