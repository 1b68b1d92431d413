"""Photographs, class maps and where they differ, as images inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segquant.data.images import decode_annotation, decode_image, open_unlimited
from segquant.data.palette import palette
from segquant.report.results import BASELINE

SIDE = 400  # pixels: the longest side of a picture on the page


def example(row: dict, methods: Iterable[str], predictions: str | Path, classes: list[str]) -> dict[str, Any]:
    """One photograph: {id, width, height, panels, legend}.

    `panels` has {name, uri, agreement, differs} for the photograph, the truth and each method whose class map lies as
    a PNG in `predictions`/METHOD/. `uri` is the picture, `agreement` the percentage of pixels with float32's class and
    `differs` a mask that is dark where the classes agree; both are None without a float32 to compare with. `legend` has
    (class, colour) of each class in a picture.
    """
    maps = class_maps(row, methods, predictions)
    photo = _fit(decode_image(row["image"], row["id"]), Image.Resampling.LANCZOS)
    panels = [{"name": "photo", "uri": _uri(photo, "JPEG", quality=85), "agreement": None, "differs": None}]
    for name, ids in maps.items():
        panel = {"name": name, "uri": _uri(_colored(ids), "PNG", optimize=True), "agreement": None, "differs": None}
        if BASELINE in maps and name not in ("truth", BASELINE):
            same = ids == maps[BASELINE]
            panel |= {"agreement": 100 * float(same.mean()), "differs": _mask(same)}
        panels.append(panel)
    colors = palette()
    present = sorted(set().union(*(np.unique(ids).tolist() for ids in maps.values())))
    legend = [(classes[i], "#{:02x}{:02x}{:02x}".format(*colors[i])) for i in present if i < len(classes)]
    return {"id": row["id"], "width": photo.width, "height": photo.height, "panels": panels, "legend": legend}


def class_maps(row: dict, methods: Iterable[str], predictions: str | Path) -> dict[str, np.ndarray]:
    """{name: class ids uint8 (H, W)} of the truth and of each method whose prediction was kept."""
    maps = {"truth": decode_annotation(row["annotation"], row["id"])}
    for method in methods:
        file = Path(predictions) / method / f"{row['id']}.png"
        if file.is_file():
            maps[method] = np.asarray(open_unlimited(file.read_bytes()))
    return maps


def overlays(
    rows: Iterable[dict], methods: Iterable[str], predictions: str | Path
) -> list[tuple[str, np.ndarray, dict[str, np.ndarray]]]:
    """(id, RGB uint8 (H, W, 3), `class_maps`) of each photograph, as `tracking.Report` holds them."""
    methods = list(methods)
    return [
        (row["id"], np.asarray(decode_image(row["image"], row["id"])), class_maps(row, methods, predictions))
        for row in rows
    ]


def _fit(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    scale = min(1.0, SIDE / max(image.size))
    return image.resize(tuple(max(1, round(side * scale)) for side in image.size), resampling)


def _colored(ids: np.ndarray) -> Image.Image:
    image = _fit(Image.fromarray(ids), Image.Resampling.NEAREST)
    image.putpalette(palette().tobytes())
    return image


def _mask(same: np.ndarray) -> str:
    """Black where the classes agree and transparent elsewhere, so that differences keep their colours."""
    image = _fit(Image.fromarray(same.astype(np.uint8)), Image.Resampling.NEAREST)
    image.putpalette(bytes(6))
    return _uri(image, "PNG", optimize=True, transparency=bytes((0, 255)), bits=1)


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(data.getvalue()).decode()
