"""Built-in data: procedural street, landscape and indoor scenes with ADE20K class ids.

`sample(seed, split, index)` is a pure function of its arguments and of the pinned numpy and Pillow. The scenes replace
Scene Parse 150 where there is no network. Each side is 240 to 400 pixels long, 37 of the 150 classes occur, and light,
noise, blur, occlusion and ambiguous colours keep the accuracy of a trained model well below 100 %.
"""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image, ImageFilter

from segquant.scenes.canvas import Canvas
from segquant.scenes.indoor import room
from segquant.scenes.outdoor import landscape, street

SIZES = {"train": 20_000, "validation": 2_000}  # the sizes of Scene Parse 150, rounded
KINDS = {"street": street, "landscape": landscape, "room": room}


def draw(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Scene `index` of `split`: RGB uint8 (H, W, 3) and ADE20K class ids uint8 (H, W), where 255 means ignore."""
    rng = np.random.default_rng([seed, zlib.crc32(split.encode()), index])
    width, height = (int(n) for n in rng.integers(240, 401, 2))
    canvas = Canvas(rng, width, height)
    KINDS[rng.choice(list(KINDS), p=[0.4, 0.27, 0.33])](canvas)
    return _photograph(rng, canvas.rgb), canvas.labels


def sample(seed: int, split: str, index: int) -> dict:
    """Scene `index` as a shard row: `id`, `image` (JPEG), `annotation` (PNG), `width`, `height`."""
    rgb, labels = draw(seed, split, index)
    image, annotation = io.BytesIO(), io.BytesIO()
    Image.fromarray(rgb).save(image, "JPEG", quality=92)
    Image.fromarray(labels).save(annotation, "PNG", compress_level=3)
    height, width = labels.shape
    return {
        "id": f"scene_{split}_{index:08d}",
        "image": image.getvalue(),
        "annotation": annotation.getvalue(),
        "width": width,
        "height": height,
    }


def _photograph(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """Simulate a camera: uneven light, colour cast, exposure, haze, blur and sensor noise."""
    height, width = rgb.shape[:2]
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0, 0.3) * (np.cos(angle) * x + np.sin(angle) * y) - rng.uniform(0, 0.2) * (x * x + y * y)
    gain = rng.choice([1.0, 0.5], p=[0.88, 0.12]) * rng.uniform(0.8, 1.15)
    cast = 1 + rng.normal(0, 0.05, 3).astype(np.float32)
    rgb *= (gain * light)[..., None] * cast
    if rng.random() < 0.2:  # haze
        rgb += (205 - rgb) * np.float32(rng.uniform(0.05, 0.25))
    image = Image.fromarray(np.clip(rgb, 0, 255, out=rgb).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    noise = rng.standard_normal((height, width, 1), dtype=np.float32) * np.float32(rng.uniform(1, 8))
    noise = np.asarray(image) + noise
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)
