"""A picture and its label image, painted back to front.

`Canvas` paints every shape twice: with a `Material` into the picture and with a class id into the labels, so the labels
are exact. Pillow rasterises each shape inside its bounding box, so a scene of fifty objects takes less than 30 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from segquant.base.classes import ADE20K_IDS

Point = tuple[float, float]
Pattern = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (y, x) in pixels -> shade in [-1, 1]


@dataclass(frozen=True)
class Material:
    """How a surface looks: RGB colour in [0, 255] and the strength of each texture, in grey levels."""

    color: np.ndarray
    grain: float = 6.0  # fine noise
    mottle: float = 8.0  # soft blotches
    leaves: float = 0.0  # hard-edged blotches
    streaks: float = 0.0  # noise stretched sideways: water, clouds
    pattern: Pattern | None = None
    pattern_strength: float = 0.0
    shade: float = 0.0  # darkening from top to bottom


def bricks(size: float) -> Pattern:
    """Courses of bricks `size` pixels high with light joints, shifted from course to course."""

    def shade(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        row = np.floor(y / size)
        joint = (y % size < 1.2) | ((x + row * size) % (2 * size) < 1.2)
        return np.where(joint, 1.0, -0.2)

    return shade


def stripes(period: float, angle: float = 0.0) -> Pattern:
    """Sine waves of `period` pixels; `angle` in radians turns them from vertical stripes."""
    c, s = np.cos(angle), np.sin(angle)
    return lambda y, x: np.sin((x * c + y * s) * (2 * np.pi / period))


def planks(period: float, horizontal: bool = False) -> Pattern:
    """Boards `period` pixels wide, each in its own shade, with dark joints."""

    def shade(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        t = (y if horizontal else x) / period
        board = np.floor(t)
        return np.where(t - board < 1.3 / period, -1.0, 0.45 * np.sin(board * 12.9898))

    return shade


def checks(period: float) -> Pattern:
    """A chessboard with squares of `period` pixels."""
    return lambda y, x: np.where((np.floor(y / period) + np.floor(x / period)) % 2 == 0, 1.0, -1.0)


class Canvas:
    """`rgb` float32 (H, W, 3) in [0, 255] and `labels` uint8 (H, W), 255 where nothing was painted."""

    def __init__(self, rng: np.random.Generator, width: int, height: int):
        self.rng, self.width, self.height = rng, width, height
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.labels = np.full((height, width), 255, np.uint8)
        self._fine = rng.standard_normal((height, width), dtype=np.float32)
        self._soft = self._noise(9, 9)
        self._leaves = np.sign(self._noise(3, 3)) * np.float32(0.6) + np.float32(0.5) * self._noise(6, 6)
        self._streaks = self._noise(2, 16)

    def _noise(self, cell_y: int, cell_x: int) -> np.ndarray:
        """Smooth noise of about unit variance, float32 (H, W), with features of `cell_y` x `cell_x` pixels."""
        small = self.rng.standard_normal((self.height // cell_y + 3, self.width // cell_x + 3), dtype=np.float32)
        image = Image.fromarray(small).resize((self.width, self.height), Image.Resampling.BILINEAR)
        return np.asarray(image) * np.float32(1.5)

    def color(self, base: Sequence[float], spread: float = 18.0, cast: float = 8.0) -> np.ndarray:
        """`base` with random brightness and colour cast; `spread` and `cast` are standard deviations in grey levels."""
        value = np.asarray(base, np.float32)
        value = value + self.rng.normal(0, spread) + self.rng.normal(0, cast, 3)
        return np.clip(value, 4, 250).astype(np.float32)

    def any_color(self, low: float = 30, high: float = 225) -> np.ndarray:
        return self.rng.uniform(low, high, 3).astype(np.float32)

    # Shapes of class `name`. Points are (x, y) in pixels and may lie outside the picture.
    def polygon(self, name: str, points: Sequence[Point], material: Material) -> None:
        self._paint(name, *self._mask(points, lambda d, p: d.polygon(p, fill=255)), material)

    def trapezoid(self, name: str, x: float, y0: float, half0: float, y1: float, half1: float, material: Material):
        """Two horizontal edges at y0 and y1, centred on `x`, half as long as `half0` and `half1` say."""
        self.polygon(name, [(x - half0, y0), (x + half0, y0), (x + half1, y1), (x - half1, y1)], material)

    def rectangle(self, name: str, x0: float, y0: float, x1: float, y1: float, material: Material) -> None:
        self._paint(name, self._box(x0, y0, x1, y1), None, material)

    def ellipse(self, name: str, x0: float, y0: float, x1: float, y1: float, material: Material) -> None:
        self._paint(name, *self._ellipse(x0, y0, x1, y1), material)

    def line(self, name: str, points: Sequence[Point], width: float, material: Material) -> None:
        stroke = max(1, round(width))
        mask = self._mask(points, lambda d, p: d.line(p, fill=255, width=stroke), pad=stroke)
        self._paint(name, *mask, material)

    def blob(self, name: str, x: float, y: float, rx: float, ry: float, material: Material, lobes: int = 7) -> None:
        """A rounded, irregular shape around (x, y) with radii `rx` and `ry`: crowns of trees, rocks, clouds."""
        angles = np.linspace(0, 2 * np.pi, 4 * lobes, endpoint=False)
        radius = 1 + 0.22 * self.rng.standard_normal(angles.size)
        radius = np.clip((radius + np.roll(radius, 1)) / 2, 0.5, 1.4)
        xs, ys = x + rx * radius * np.cos(angles), y + ry * radius * np.sin(angles)
        self.polygon(name, list(zip(xs, ys)), material)

    def ridge(self, base: float, amplitude: float, roughness: float = 0.55) -> list[Point]:
        """The outline of hills around y = `base`, from left to right, by midpoint displacement."""
        heights = self.rng.normal(0, amplitude, 2) * 0.5
        while heights.size < 65:
            middle = (heights[:-1] + heights[1:]) / 2 + self.rng.normal(0, amplitude, heights.size - 1)
            merged = np.empty(heights.size * 2 - 1)
            merged[::2], merged[1::2] = heights, middle
            heights, amplitude = merged, amplitude * roughness
        return list(zip(np.linspace(-1, self.width, heights.size), base - heights))

    def ground(self, name: str, outline: Sequence[Point], material: Material) -> None:
        """Fill the picture from `outline` down to the bottom."""
        self.polygon(name, [*outline, (self.width, self.height), (-1, self.height)], material)

    def shadow(self, x0: float, y0: float, x1: float, y1: float, strength: float = 0.35) -> None:
        """Darken an ellipse of the picture without changing the labels."""
        box, mask = self._ellipse(x0, y0, x1, y1)
        if box is not None:
            self.rgb[box] *= 1 - strength * mask[..., None]

    # Rasterising: the box of a shape in the picture (None outside of the picture) and the mask inside the box.
    def _box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice] | None:
        left, right = max(0, round(x0)), min(self.width, round(x1) + 1)
        top, bottom = max(0, round(y0)), min(self.height, round(y1) + 1)
        return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None

    def _ellipse(self, x0, y0, x1, y1):
        return self._mask([(x0, y0), (x1, y1)], lambda d, p: d.ellipse([*p[0], *p[1]], fill=255))

    def _mask(self, points, draw, pad: int = 0):
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        box = self._box(min(xs) - pad - 1, min(ys) - pad - 1, max(xs) + pad + 1, max(ys) + pad + 1)
        if box is None:
            return None, None
        rows, columns = box
        image = Image.new("L", (columns.stop - columns.start, rows.stop - rows.start))
        draw(ImageDraw.Draw(image), [(float(x - columns.start), float(y - rows.start)) for x, y in points])
        return box, np.asarray(image) > 0

    def _paint(self, name: str, box, mask, material: Material) -> None:
        if box is None:
            return
        tone = material.grain * self._fine[box] + material.mottle * self._soft[box]
        if material.leaves:
            tone += material.leaves * self._leaves[box]
        if material.streaks:
            tone += material.streaks * self._streaks[box]
        y = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None]
        if material.pattern is not None:
            x = np.arange(box[1].start, box[1].stop, dtype=np.float32)
            tone += material.pattern_strength * material.pattern(y, x)
        if material.shade:
            tone -= np.float32(material.shade) * (y - y[0]) / len(y)
        where = True if mask is None else mask
        for channel, value in enumerate(material.color):
            np.add(tone, value, out=self.rgb[(*box, channel)], where=where)
        np.copyto(self.labels[box], np.uint8(ADE20K_IDS[name]), where=where)
