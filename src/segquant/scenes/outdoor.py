"""Streets and landscapes."""

from __future__ import annotations

import numpy as np

from segquant.scenes import objects
from segquant.scenes.canvas import Canvas, Material, checks, stripes

# Objects and their probabilities.
STREET_OBJECTS = {
    "car": 0.25,
    "bus": 0.08,
    "person": 0.2,
    "pole": 0.11,
    "streetlight": 0.12,
    "tree": 0.1,
    "fence": 0.08,
    "plant": 0.06,
}
LANDSCAPE_OBJECTS = {
    "tree": 0.25,
    "rock": 0.2,
    "house": 0.16,
    "person": 0.12,
    "fence": 0.12,
    "plant": 0.1,
    "pole": 0.05,
}
EARTH, GRASS, SAND, ROAD = (122, 98, 74), (96, 124, 64), (202, 180, 140), (98, 98, 102)


def grass_material(c: Canvas) -> Material:
    return Material(c.color(GRASS, 20, 10), 11, 9, leaves=c.rng.uniform(2, 9))


def field_material(c: Canvas) -> Material:
    base = [(166, 156, 84), (142, 148, 70), (122, 108, 70)][c.rng.integers(3)]
    angle = c.rng.uniform(0.9, 2.2)
    color, furrows = c.color(base, 16, 8), stripes(c.rng.uniform(5, 12), angle)
    return Material(color, 7, 7, pattern=furrows, pattern_strength=c.rng.uniform(7, 15))


def water_material(c: Canvas) -> Material:
    base = [(86, 122, 148), (120, 148, 168), (72, 104, 104), (150, 160, 178)][c.rng.integers(4)]
    return Material(c.color(base, 14, 8), 3, 4, streaks=c.rng.uniform(8, 19), shade=c.rng.uniform(-10, 35))


def street(c: Canvas) -> None:
    rng, w, h = c.rng, c.width, c.height
    horizon = h * rng.uniform(0.36, 0.54)
    vanish = w * rng.uniform(0.3, 0.7)
    foot = horizon + h * rng.uniform(0.02, 0.07)
    objects.sky(c, foot)
    if rng.random() < 0.35:
        c.ground("mountain", c.ridge(horizon - h * 0.06, h * 0.06), Material(c.color((96, 112, 122), 16), 4, 7))

    side = grass_material(c) if rng.random() < 0.5 else Material(c.color(EARTH, 22, 8), 9, 12)
    c.ground("grass" if side.leaves else "earth", [(-1, foot - 2), (w, foot - 2)], side)
    for x in np.arange(-20, w, rng.uniform(50, 95)):  # the row of buildings in the background
        if rng.random() < 0.72:
            width, height = rng.uniform(45, 105), h * rng.uniform(0.14, 0.42)
            objects.building(c, x, foot - height, x + width, foot)
        elif rng.random() < 0.7:
            objects.tree(c, x + 25, foot, h * rng.uniform(0.16, 0.34))

    # Sidewalk and road narrow towards the vanishing point.
    left, right = -w * rng.uniform(0.0, 0.5), w * rng.uniform(1.0, 1.5)
    walk = w * rng.uniform(0.14, 0.34)
    color, slabs = c.color((156, 148, 140), 20), checks(rng.uniform(7, 14))
    paving = Material(color, 6, 6, pattern=slabs, pattern_strength=rng.uniform(0, 7))
    asphalt = Material(c.color(ROAD, 20, 6), 6, 8)
    c.polygon("sidewalk", [(vanish - 5, foot - 1), (vanish + 5, foot - 1), (right + walk, h), (left - walk, h)], paving)
    c.polygon("road", [(vanish - 3, foot - 1), (vanish + 3, foot - 1), (right, h), (left, h)], asphalt)
    marking = Material(c.color((214, 208, 190), 16), 5)
    for t0 in np.arange(0.1, 1.0, 0.17):
        t1 = t0 + 0.08
        x0, x1 = (vanish + ((left + right) / 2 - vanish) * t for t in (t0, t1))
        y0, y1 = (foot + (h - foot) * t for t in (t0, t1))
        c.polygon("road", [(x0 - 3 * t0, y0), (x0 + 3 * t0, y0), (x1 + 3 * t1, y1), (x1 - 3 * t1, y1)], marking)

    # Objects on the ground, far ones first; t runs from the vanishing point (0) to the camera (1).
    for t in np.sort(rng.uniform(0.08, 0.95, rng.integers(7, 13))):
        y = foot + (h - foot) * t
        scale = h * (0.09 + 0.34 * t)
        edge_l, edge_r = vanish + (left - vanish) * t, vanish + (right - vanish) * t
        out_l, out_r = vanish + (left - walk - vanish) * t, vanish + (right + walk - vanish) * t
        on_left = rng.random() < 0.5
        walk_x = rng.uniform(out_l, edge_l) if on_left else rng.uniform(edge_r, out_r)
        beyond = out_l - rng.uniform(4, 60) if on_left else out_r + rng.uniform(4, 60)
        kind = rng.choice(list(STREET_OBJECTS), p=list(STREET_OBJECTS.values()))
        if kind == "car":
            objects.car(c, rng.uniform(edge_l, edge_r), y, scale * 0.62)
        elif kind == "bus":
            objects.bus(c, rng.uniform(edge_l, edge_r), y, scale * 1.15)
        elif kind == "person":
            for _ in range(rng.integers(1, 4)):
                objects.person(c, walk_x + rng.normal(0, 12 * t + 3), y, scale * rng.uniform(0.65, 0.85))
        elif kind == "pole":
            objects.pole(c, walk_x, y, scale * rng.uniform(1.2, 1.9))
        elif kind == "streetlight":
            objects.streetlight(c, walk_x, y, scale * rng.uniform(1.6, 2.2))
        elif kind == "tree":
            objects.tree(c, beyond, y, scale * rng.uniform(1.2, 2.0))
        elif kind == "fence":
            length = rng.uniform(30, 120)
            objects.fence(c, beyond - length / 2, beyond + length / 2, y, scale * 0.34)
        else:
            objects.plant(c, beyond, y, scale * 0.4)


def landscape(c: Canvas) -> None:
    rng, w, h = c.rng, c.width, c.height
    horizon = h * rng.uniform(0.3, 0.56)
    objects.sky(c, horizon + 0.1 * h)
    for k in range(rng.integers(0, 3)):
        base = [(108, 118, 132), (92, 98, 92), (128, 114, 102)][rng.integers(3)]
        outline = c.ridge(horizon - h * rng.uniform(0.04, 0.16) / (k + 1), h * 0.1)
        stone = Material(c.color(base, 16, 7), 6, 11, leaves=rng.uniform(0, 8), shade=rng.uniform(-20, 25))
        c.ground("mountain", outline, stone)
    for x in rng.uniform(0, w, rng.integers(0, 9)):  # a distant wood
        objects.tree(c, x, horizon + h * 0.03, h * rng.uniform(0.08, 0.17))

    kinds = {
        "grass": grass_material,
        "field": field_material,
        "water": water_material,
        "sand": lambda c: Material(c.color(SAND, 16, 7), 6, 7, streaks=rng.uniform(0, 6)),
        "earth": lambda c: Material(c.color(EARTH, 18, 8), 9, 13),
    }
    bands = list(rng.permutation(list(kinds))[: rng.integers(2, 5)])
    edges = np.sort(rng.uniform(horizon + 6, h * 0.95, len(bands) - 1)) if len(bands) > 1 else []
    tops = [horizon, *edges]
    water = None
    for name, top in zip(bands, tops):
        flat = 0.006 if name == "water" or top == horizon else 0.03
        c.ground(name, c.ridge(top, h * flat, 0.6), kinds[name](c))
        if name == "water":
            lower = [edge for edge in tops if edge > top]
            water = (top, lower[0] if lower else h)
    if rng.random() < 0.3:  # a road to the horizon
        x0, x1, half = rng.uniform(0.2, 0.8) * w, rng.uniform(0, 1) * w, rng.uniform(0.1, 0.25) * w
        outline = [(x0 - 2, horizon + 2), (x0 + 2, horizon + 2), (x1 + half, h), (x1 - half, h)]
        c.polygon("road", outline, Material(c.color(ROAD, 22, 7), 6, 8))

    for y in np.sort(rng.uniform(horizon + 4, h * 1.02, rng.integers(6, 13))):
        t = (y - horizon) / (h - horizon)
        scale = h * (0.09 + 0.3 * t)
        x = rng.uniform(0, w)
        if water and water[0] + 3 < y < water[1] - 2:
            if rng.random() < 0.7:
                objects.boat(c, x, y, scale * 0.42)
            continue
        kind = rng.choice(list(LANDSCAPE_OBJECTS), p=list(LANDSCAPE_OBJECTS.values()))
        if kind == "tree":
            objects.tree(c, x, y, scale * rng.uniform(1.0, 1.9))
        elif kind == "rock":
            for _ in range(rng.integers(1, 4)):
                objects.rock(c, x + rng.normal(0, scale * 0.4), y, scale * rng.uniform(0.12, 0.4))
        elif kind == "house":
            objects.house(c, x, y, scale * rng.uniform(0.7, 1.15))
        elif kind == "person":
            objects.person(c, x, y, scale * rng.uniform(0.5, 0.7))
        elif kind == "fence":
            length = rng.uniform(60, 220)
            objects.fence(c, x - length / 2, x + length / 2, y, scale * 0.3)
        elif kind == "plant":
            objects.plant(c, x, y, scale * rng.uniform(0.25, 0.45))
        else:
            objects.pole(c, x, y, scale * rng.uniform(1.0, 1.7))
