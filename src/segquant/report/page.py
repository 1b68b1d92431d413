"""metrics/report/index.html: the table, two plots and pictures in one self-contained file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from segquant.data.images import decode_annotation, decode_image
from segquant.data.palette import palette
from segquant.files import write_text
from segquant.report import plots, tables

WIDTH = 240  # of a picture on the page, pixels


def write_page(
    path: str | Path,
    results: dict[str, dict[str, Any]],
    rows: Iterable[dict],
    pictures: str | Path,
    classes: list[str],
    hardware: dict[str, Any],
) -> None:
    """Write the page. `rows` are the shard rows whose predictions lie as PNGs in `pictures/METHOD/`."""
    done = tables.measured(results)
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
        examples=[_example(row, done, Path(pictures), classes) for row in rows],
    )
    write_text(path, html)


def _example(row: dict, methods: Iterable[str], pictures: Path, classes: list[str]) -> dict:
    label = decode_annotation(row["annotation"])
    photo = decode_image(row["image"], row["id"])
    panels = [("photo", _jpeg(photo)), ("truth", _png(label))]
    present = set(np.unique(label))
    for method in methods:
        file = pictures / method / f"{row['id']}.png"
        if not file.is_file():
            continue
        prediction = np.asarray(Image.open(file))
        present |= set(np.unique(prediction))
        panels.append((method, _png(prediction)))
    colors = palette()
    legend = [(classes[i], "#{:02x}{:02x}{:02x}".format(*colors[i])) for i in sorted(present) if i < len(classes)]
    return {"id": row["id"], "panels": panels, "legend": legend}


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
