"""metrics/report/index.html: the table, two plots and pictures in one self-contained file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from segquant.config import Method
from segquant.data.images import decode_annotation, decode_image
from segquant.data.palette import palette
from segquant.files import write_text
from segquant.report import plots, tables, training

WIDTH = 240  # of a picture on the page, pixels


def write_page(
    path: str | Path,
    results: dict[str, dict[str, Any]],
    rows: Iterable[dict],
    pictures: str | Path,
    classes: list[str],
    hardware: dict[str, Any],
    recipes: Mapping[str, Method],
) -> None:
    """Write the page. `rows` are the shard rows whose predictions lie as PNGs in `pictures/METHOD/`."""
    done, rows, pictures = tables.measured(results), list(rows), Path(pictures)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("segquant", "report"), autoescape=True)
    html = environment.get_template("page.html").render(
        headings=[heading for _, heading, _, _ in tables.COLUMNS],
        table=[(name, tables.cells(results, name)) for name in done],
        speed_headings=tables.SPEED_HEADINGS,
        speed=tables.speed_rows(results),
        notes=tables.footnotes(results, hardware),
        hardware=hardware,
        size_plot=plots.size(done),
        latency_plot=plots.latency(done),
        trained=[
            (name, *training.class_table(pictures, methods), [_overlays(row, methods, pictures) for row in rows])
            for name, methods in training.trained(recipes, done).items()
        ],
        examples=[_example(row, done, pictures, classes) for row in rows],
    )
    write_text(path, html)


def _example(row: dict, methods: Iterable[str], pictures: Path, classes: list[str]) -> dict:
    """The photograph, the truth and each method's prediction as maps of colours, and what the colours mean."""
    maps = _maps(row, methods, pictures)
    panels = [
        ("photo", _jpeg(decode_image(row["image"], row["id"]))),
        *((name, _png(ids)) for name, ids in maps.items()),
    ]
    present = sorted(set().union(*(np.unique(ids) for ids in maps.values())))
    colors = palette()
    legend = [(classes[i], "#{:02x}{:02x}{:02x}".format(*colors[i])) for i in present if i < len(classes)]
    return {"id": row["id"], "panels": panels, "legend": legend}


def _overlays(row: dict, methods: Iterable[str], pictures: Path) -> list[tuple[str, str]]:
    """The photograph, the truth over it, and each method's prediction over it."""
    photo, colors = decode_image(row["image"], row["id"]), palette()
    over = {
        name: Image.blend(photo, Image.fromarray(colors[ids]), 0.55)
        for name, ids in _maps(row, methods, pictures).items()
    }
    return [("photo", _jpeg(photo)), *((name, _jpeg(image)) for name, image in over.items())]


def _maps(row: dict, methods: Iterable[str], pictures: Path) -> dict[str, np.ndarray]:
    """Class ids (H, W) uint8 of the truth and of each method whose prediction was kept."""
    maps = {"truth": decode_annotation(row["annotation"])}
    for method in methods:
        file = pictures / method / f"{row['id']}.png"
        if file.is_file():
            maps[method] = np.asarray(Image.open(file))
    return maps


def _jpeg(image: Image.Image) -> str:
    image = image.resize((WIDTH, round(image.height * WIDTH / image.width)))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def _png(ids: np.ndarray) -> str:
    image = Image.fromarray(ids)
    image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.NEAREST)
    image.putpalette(palette().tobytes())
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
