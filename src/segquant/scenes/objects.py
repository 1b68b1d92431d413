"""Objects of a scene. Each function paints an object that stands at (x, y) and is `s` pixels high."""

from __future__ import annotations

import numpy as np

from segquant.scenes.canvas import Canvas, Material, bricks, planks, stripes

GREEN, DARK, SKIN = (74, 104, 58), (42, 42, 46), (186, 142, 116)


def sky(c: Canvas, horizon: float) -> None:
    rng = c.rng
    bases = [(150, 185, 225), (196, 202, 208), (214, 178, 150), (92, 112, 150), (120, 160, 215)]
    base = bases[rng.integers(len(bases))]
    cloud = rng.uniform(0, 22)
    material = Material(c.color(base, 14, 7), 2, rng.uniform(2, 9), streaks=cloud, shade=-rng.uniform(0, 45))
    c.rectangle("sky", -1, -1, c.width, horizon + 2, material)
    for _ in range(rng.integers(0, 4)):
        x, y, r = rng.uniform(0, c.width), rng.uniform(0, horizon), rng.uniform(12, 45)
        c.blob("sky", x, y, 2 * r, 0.5 * r, Material(c.color((222, 222, 226), 14, 4), 3, 10))


def tree(c: Canvas, x: float, y: float, s: float) -> None:
    rng = c.rng
    trunk, crown = rng.uniform(0.04, 0.09) * s, rng.uniform(0.24, 0.4) * s
    c.shadow(x - crown, y - 0.04 * s, x + crown, y + 0.05 * s)
    bark = Material(c.color((86, 68, 52), 14), 9, 9)
    c.trapezoid("tree", x, y, trunk, y - 0.6 * s, trunk / 2, bark)
    autumn = rng.random() < 0.15
    leaf = Material(c.color((150, 100, 48) if autumn else GREEN, 22, 11), 10, 8, leaves=rng.uniform(14, 26), shade=26)
    if rng.random() < 0.3:  # a conifer
        for k in range(4):
            top, half = y - s * (1 - 0.2 * k), crown * (0.4 + 0.18 * k)
            c.polygon("tree", [(x, top), (x + half, top + 0.36 * s), (x - half, top + 0.36 * s)], leaf)
        return
    for _ in range(rng.integers(2, 5)):
        dx, dy = rng.normal(0, 0.35 * crown), rng.normal(0, 0.22 * crown)
        c.blob("tree", x + dx, y - 0.68 * s + dy, crown * rng.uniform(0.6, 0.95), 0.3 * s, leaf)


def plant(c: Canvas, x: float, y: float, s: float, pot: bool = False) -> None:
    rng = c.rng
    leaf = Material(c.color((70, 122, 60), 24, 14), 8, 8, leaves=rng.uniform(8, 18))
    if pot:
        clay = Material(c.color((150, 100, 80), 35, 20), 4, 5)
        c.trapezoid("plant", x, y - 0.35 * s, 0.2 * s, y, 0.14 * s, clay)
        y -= 0.3 * s
    for angle in rng.uniform(-1.15, 1.15, rng.integers(6, 12)):
        length = rng.uniform(0.5, 1.0) * (0.7 * s if pot else s)
        tip = (x + length * np.sin(angle), y - length * np.cos(angle))
        side = 0.13 * length
        mid = (x + 0.55 * length * np.sin(angle), y - 0.6 * length * np.cos(angle))
        c.polygon("plant", [(x, y), (mid[0] - side, mid[1]), tip, (mid[0] + side, mid[1])], leaf)


def person(c: Canvas, x: float, y: float, s: float) -> None:
    rng = c.rng
    c.shadow(x - 0.2 * s, y - 0.03 * s, x + 0.2 * s, y + 0.03 * s)
    w, stride = 0.115 * s * rng.uniform(0.85, 1.25), rng.uniform(0.02, 0.14) * s
    trousers, shirt = Material(c.any_color(20, 130), 5, 6), Material(c.any_color(), 5, 7)
    for side in (-1, 1):
        c.line("person", [(x + side * 0.05 * s, y - 0.5 * s), (x + side * stride, y)], 0.1 * s, trousers)
    c.trapezoid("person", x, y - 0.84 * s, w, y - 0.44 * s, 0.85 * w, shirt)
    for side in (-1, 1):
        reach = rng.uniform(0.6, 1.5) * w
        c.line("person", [(x + side * w, y - 0.8 * s), (x + side * (w + 0.4 * reach), y - 0.45 * s)], 0.06 * s, shirt)
    c.ellipse("person", x - 0.062 * s, y - s, x + 0.062 * s, y - 0.85 * s, Material(c.color(SKIN, 32), 3, 3))
    hair = Material(c.color((60, 48, 40), 26), 6)
    c.ellipse("person", x - 0.065 * s, y - 1.01 * s, x + 0.065 * s, y - 0.93 * s, hair)


def car(c: Canvas, x: float, y: float, s: float) -> None:
    rng = c.rng
    side_view = rng.random() < 0.5
    w = s * (1.35 if side_view else 0.68)
    paint = Material(c.any_color(20, 235), 3, 4, shade=rng.uniform(0, 40))
    glass = Material(c.color((70, 84, 98), 22), 3, 5)
    black = Material(c.color((28, 28, 30), 8), 4)
    c.shadow(x - 1.05 * w, y - 0.1 * s, x + 1.05 * w, y + 0.12 * s, 0.5)
    for side in (-0.62, 0.62):
        if side_view:
            c.ellipse("car", x + side * w - 0.19 * s, y - 0.36 * s, x + side * w + 0.19 * s, y + 0.02 * s, black)
        else:
            c.rectangle("car", x + side * w * 1.2 - 0.1 * s, y - 0.3 * s, x + side * w * 1.2 + 0.1 * s, y, black)
    body = [(-1, 0.12), (-1, 0.5), (-0.7, 0.6), (0.75, 0.6), (1, 0.46), (1, 0.12)]
    roof = [(-0.72, 0.58), (-0.5, 1), (0.42, 1), (0.72, 0.58)]
    windows = [(-0.6, 0.6), (-0.44, 0.93), (0.37, 0.93), (0.6, 0.6)]
    for outline, material in ((body, paint), (roof, paint), (windows, glass)):
        c.polygon("car", [(x + right * w, y - up * s) for right, up in outline], material)
    lamp = Material(c.color((230, 200, 150) if rng.random() < 0.5 else (190, 50, 45), 20), 2)
    for side in (-0.82, 0.82):
        c.ellipse("car", x + side * w - 0.08 * s, y - 0.46 * s, x + side * w + 0.08 * s, y - 0.34 * s, lamp)


def bus(c: Canvas, x: float, y: float, s: float) -> None:
    rng = c.rng
    w = s * rng.uniform(0.5, 1.5)
    paint = Material(c.any_color(50, 235), 3, 5, shade=20)
    glass, black = Material(c.color((60, 72, 86), 22), 3, 6), Material(c.color((26, 26, 28), 6), 3)
    c.shadow(x - 1.05 * w, y - 0.06 * s, x + 1.05 * w, y + 0.06 * s, 0.5)
    for side in (-0.65, 0.65):
        c.ellipse("bus", x + side * w - 0.12 * s, y - 0.22 * s, x + side * w + 0.12 * s, y + 0.01 * s, black)
    c.rectangle("bus", x - w, y - s, x + w, y - 0.1 * s, paint)
    count = max(2, round(3 * w / s * 1.6))
    pane = 2 * w / count
    for k in range(count):
        left = x - w + k * pane
        c.rectangle("bus", left + 0.08 * pane, y - 0.88 * s, left + 0.92 * pane, y - 0.5 * s, glass)
    c.rectangle("bus", x - w, y - 0.42 * s, x + w, y - 0.34 * s, Material(c.any_color(), 3, 3))


def building(c: Canvas, x0: float, y0: float, x1: float, y1: float, name: str = "building") -> None:
    rng = c.rng
    bases = [(158, 122, 102), (176, 168, 154), (128, 128, 132), (196, 182, 152), (138, 92, 78), (100, 110, 122)]
    pattern = [None, bricks(rng.uniform(3, 6)), planks(rng.uniform(6, 12), True)][rng.integers(3)]
    color = c.color(bases[rng.integers(len(bases))], 24, 10)
    wall = Material(color, 5, 7, pattern=pattern, pattern_strength=rng.uniform(5, 13))
    c.rectangle(name, x0, y0, x1, y1, wall)
    if rng.random() < 0.4:
        cornice = Material(color * rng.uniform(0.6, 1.15), 4)
        c.rectangle(name, x0 - 2, y0, x1 + 2, y0 + 0.04 * (y1 - y0) + 2, cornice)
    step_x, step_y = rng.uniform(15, 27), rng.uniform(19, 32)
    pane_x, pane_y = rng.uniform(0.38, 0.62) * step_x, rng.uniform(0.42, 0.66) * step_y
    dark = rng.random() < 0.75
    for y in np.arange(y0 + 0.3 * step_y, y1 - 1.2 * step_y, step_y):
        for x in np.arange(x0 + 0.25 * step_x, x1 - pane_x - 1, step_x):
            if rng.random() < 0.06:
                continue
            glass = Material(c.color((58, 70, 84) if dark else (206, 214, 216), 18), 3, 8)
            c.rectangle("windowpane", x, y, x + pane_x, y + pane_y, glass)
    if x1 - x0 > 30:
        x, w, h = rng.uniform(x0 + 4, x1 - 18), rng.uniform(8, 15), rng.uniform(21, 32)
        door(c, x, y1, w, h)
    if rng.random() < 0.55:
        w, h = rng.uniform(18, 48), rng.uniform(8, 17)
        x, y = rng.uniform(x0, max(x0 + 1, x1 - w)), y1 - rng.uniform(32, 48)
        sign_plate(c, x, y, x + w, y + h)


def door(c: Canvas, x: float, foot: float, w: float, h: float) -> None:
    material = Material(c.color((104, 76, 58), 38, 18), 4, 5, pattern=planks(max(3, w / 3)), pattern_strength=8)
    c.rectangle("door", x, foot - h, x + w, foot, material)
    knob = Material(c.color((190, 170, 110)), 2)
    c.rectangle("door", x + 0.78 * w, foot - 0.5 * h, x + 0.88 * w, foot - 0.44 * h, knob)


def sign_plate(c: Canvas, x0: float, y0: float, x1: float, y1: float) -> None:
    ground = c.any_color(20, 240)
    ink = Material(np.where(ground > 128, ground - 110, ground + 110), 2)
    c.rectangle("signboard", x0, y0, x1, y1, Material(ground, 3, 3))
    middle, half = (y0 + y1) / 2, 0.2 * (y1 - y0)
    for x in np.arange(x0 + 3, x1 - 4, 5):  # letters
        if c.rng.random() < 0.8:
            c.rectangle("signboard", x, middle - half, x + c.rng.uniform(1, 3), middle + half, ink)


def house(c: Canvas, x: float, y: float, s: float) -> None:
    rng = c.rng
    w = s * rng.uniform(0.55, 0.95)
    plaster = [(198, 184, 162), (168, 118, 96), (206, 206, 200), (126, 138, 150)][rng.integers(4)]
    walls = Material(c.color(plaster, 20), 5, 6)
    tile = [(132, 70, 54), (84, 80, 82), (112, 92, 74)][rng.integers(3)]
    roof = Material(c.color(tile, 20), 6, 6, pattern=stripes(3.2, np.pi / 2), pattern_strength=8)
    c.shadow(x - 1.1 * w, y - 0.05 * s, x + 1.1 * w, y + 0.07 * s)
    c.rectangle("house", x - w, y - 0.58 * s, x + w, y, walls)
    peak = rng.uniform(-0.5, 0.5) * w
    ridge, eaves = x + peak, y - 0.56 * s
    outline = [(x - 1.15 * w, eaves), (ridge - 0.3 * w, y - s), (ridge + 0.3 * w, y - s), (x + 1.15 * w, eaves)]
    c.polygon("house", outline, roof)
    pane = max(2.5, 0.15 * s)
    top = y - 0.45 * s
    for left in (x - 0.65 * w, x + 0.3 * w):
        glass = Material(c.color((62, 72, 84), 18), 3)
        c.rectangle("windowpane", left, top, left + 1.3 * pane, top + 1.3 * pane, glass)
    door(c, x - 0.15 * w, y, 1.1 * pane, 0.36 * s)


def fence(c: Canvas, x0: float, x1: float, y: float, s: float) -> None:
    rng = c.rng
    material = Material(c.color([(190, 186, 176), (112, 86, 64), (60, 62, 66)][rng.integers(3)], 22), 5, 5)
    width = max(1.0, rng.uniform(0.05, 0.13) * s)
    for x in np.arange(x0, x1, rng.uniform(0.25, 0.5) * s + width):
        c.line("fence", [(x, y), (x, y - s)], width, material)
    for level in (0.3, 0.8):
        c.line("fence", [(x0, y - level * s), (x1, y - level * s)], width, material)


def pole(c: Canvas, x: float, y: float, s: float) -> None:
    material = Material(c.color((98, 92, 86), 30), 5, 4)
    c.line("pole", [(x, y), (x + c.rng.normal(0, 0.01 * s), y - s)], max(2, 0.034 * s), material)
    if c.rng.random() < 0.4:
        size = 0.07 * s + 4
        sign_plate(c, x - size, y - s, x + size, y - s + 1.6 * size)


def streetlight(c: Canvas, x: float, y: float, s: float) -> None:
    side = c.rng.choice([-1, 1])
    metal = Material(c.color((70, 74, 78), 22), 4, 3)
    arm = 0.2 * s
    c.line("streetlight", [(x, y), (x, y - s), (x + side * arm, y - 1.04 * s)], max(2, 0.024 * s), metal)
    lamp = Material(c.color((222, 214, 180), 22), 3)
    c.ellipse("streetlight", x + side * arm - 0.055 * s, y - 1.06 * s, x + side * arm + 0.055 * s, y - 1.0 * s, lamp)


def rock(c: Canvas, x: float, y: float, s: float) -> None:
    c.shadow(x - 0.9 * s, y - 0.1 * s, x + 0.9 * s, y + 0.2 * s)
    half_width = s * c.rng.uniform(0.6, 1.0)
    stone = Material(c.color((118, 112, 104), 22), 13, 14, shade=42)
    c.blob("rock", x, y - 0.4 * s, half_width, 0.55 * s, stone, 5)


def boat(c: Canvas, x: float, y: float, s: float) -> None:
    hull, sail = Material(c.any_color(40, 230), 3, 4), Material(c.color((224, 220, 208), 14), 3, 5)
    c.shadow(x - s, y - 0.05 * s, x + s, y + 0.2 * s, 0.3)
    outline = [(x - 0.8 * s, y - 0.3 * s), (x + 0.85 * s, y - 0.3 * s), (x + 0.6 * s, y), (x - 0.55 * s, y)]
    c.polygon("boat", outline, hull)
    if c.rng.random() < 0.6:
        c.line("boat", [(x, y - 0.3 * s), (x, y - 1.5 * s)], 0.05 * s, Material(c.color(DARK), 3))
        c.polygon("boat", [(x + 2, y - 1.45 * s), (x + 0.65 * s, y - 0.4 * s), (x + 2, y - 0.4 * s)], sail)
    else:
        c.rectangle("boat", x - 0.35 * s, y - 0.6 * s, x + 0.3 * s, y - 0.28 * s, Material(c.any_color(60, 235), 3, 3))
