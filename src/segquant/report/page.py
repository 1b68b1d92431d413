"""metrics/report/index.html: what to ship, the tables, plots and pictures in one self-contained file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from segquant.base.config import Method
from segquant.base.files import write_text
from segquant.report import advice, bits, classes, notes, pictures, plots, tables, training
from segquant.report.columns import LANES, RANKED, number
from segquant.report.layers import chart
from segquant.report.results import BASELINE, Result, measured

COLUMNS = RANKED[1:]  # of the table of methods, after the method's name; a phone shows the first ones
FULL = 10.0  # points of loss at which a cell of the heat map has its full colour


def write_page(
    path: str | Path,
    results: Mapping[str, Result],
    rows: Iterable[dict],
    predictions: str | Path,
    names: list[str],
    hardware: Mapping[str, Any],
    recipes: Mapping[str, Method],
    layers: Mapping[str, Any] | None = None,
    allocations: Mapping[str, bits.Layers] | None = None,
) -> None:
    """Write the page.

    `rows` are the shard rows whose predictions lie as PNGs in `predictions`/METHOD/, beside classes.csv; `names` are
    the classes'; `layers` is the JSON of the stage `sensitivity` for this model and protocol, if it was run, and
    `allocations` is as `bits.read` gives it.
    """
    done = measured(results)
    class_results = classes.read_classes(predictions, done)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segquant", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"heat": heat, "number": number}
    html = environment.get_template("page.html").render(
        style=_inline("page.css"),
        script=_inline("page.js"),
        advice=advice.sentences(results),
        columns=COLUMNS,
        results=results.values(),
        lanes=_filled([[column.heading for column in LANES], *tables.cells(tables.lanes(results), LANES)]),
        notes=notes.footnotes(done, hardware),  # the table has a row for what is missing
        protocol=notes.protocol(results),
        machine=notes.machine(results, hardware),
        timing=notes.timing(results, hardware),
        versions=[(key, value) for key, value in hardware.items() if key not in _MACHINE],
        size_plot=Markup(plots.size(done)),
        latency_plot=Markup(plots.latency(done)),
        methods=[method for method in done if method != BASELINE],
        classes=class_results,
        most=max((result.share for result in class_results), default=1),
        trained={
            method: training.class_table(class_results, compared)
            for method, compared in training.trained(recipes, done).items()
        },
        layers=layers,
        allocations=list(allocations or ()),
        bits=Markup(bits.chart(allocations)) if allocations else None,
        sensitivity=Markup(chart(layers["layers"], allocations)) if layers else None,
        examples=[pictures.example(row, done, predictions, names) for row in rows],
    )
    write_text(path, html)


_MACHINE = ("processor", "instructions", "cores", "memory_gb", "gpu")  # of hardware.json; the rest are versions


def _filled(rows: list[Sequence[str]]) -> list[list[str]]:
    """A heading and rows without the columns that are empty in every row."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def _inline(name: str) -> Markup:
    return Markup((Path(__file__).parent / name).read_text())


def heat(points: float | None) -> str:
    """The CSS class and strength of a loss in points; none for one that is shown as 0.0."""
    if points is None or not round(points, 1):
        return ""
    strength = min(1.0, math.sqrt(abs(points) / FULL))
    return Markup(f'class="{"loss" if points > 0 else "gain"}" style="--heat: {strength:.2f}"')
