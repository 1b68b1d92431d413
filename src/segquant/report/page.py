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
from segquant.report import advice, classes, pictures, plots, tables, training
from segquant.report.layers import chart

# Columns of the table, what counts most first, as a phone shows it: those of tables.COLUMNS, and which ones stand
# behind another as its range.
ORDER = (
    "mean_iou",
    "loss_points",
    "size_mb",
    "compression",
    "latency_ms",
    "speedup_eager",
    "speedup",
    "agreement",
    "memory_mb",
    "mean_accuracy",
    "overall_accuracy",
    "engine",
    "algorithm",
    "quantized_percent",
    "quantize_seconds",
    "load_seconds",
)
RANGES = {"loss_points": ("loss_low", "loss_high"), "speedup": ("speedup_min", "speedup_max")}
FULL = 10.0  # points of loss that a cell of the heat map has its full colour at


def write_page(
    path: str | Path,
    results: dict[str, dict[str, Any]],
    rows: Iterable[dict],
    predictions: str | Path,
    names: list[str],
    hardware: dict[str, Any],
    recipes: Mapping[str, Method],
    layers: Mapping[str, Any] | None = None,
) -> None:
    """Write the page.

    `rows` are the shard rows whose predictions lie as PNGs in `predictions`/METHOD/, beside classes.csv; `names` are
    the classes'; `layers` is what the stage `sensitivity` found for this model and protocol, if it was run.
    """
    done = tables.measured(results)
    others = [name for name in done if name != tables.BASELINE]
    found = classes.read_classes(predictions, done)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("segquant", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"heat": heat, "points": lambda points: f"{round(points, 1) + 0.0:.1f}"}  # + 0.0: no -0.0
    html = environment.get_template("page.html").render(
        style=_inline("page.css"),
        script=_inline("page.js"),
        advice=advice.sentences(results),
        headings=[(_HEADINGS[name], tables.MEANING[name]) for name in ORDER],
        table=[(name, _cells(results, name)) for name in done],
        unavailable={name: one["unavailable"] for name, one in results.items() if "unavailable" in one},
        speed=_filled([tables.SPEED_HEADINGS, *tables.speed_rows(results)]),
        notes=tables.footnotes(done, hardware),  # the table has a row for what is unavailable
        protocol=_protocol(done),
        machine=_machine(hardware),
        timing=_timing(done, hardware),
        versions=[(key, value) for key, value in hardware.items() if key not in _MACHINE],
        size_plot=Markup(plots.size(done)),
        latency_plot=Markup(plots.latency(done)),
        methods=others,
        heatmap=classes.losses(found, others),
        most=max((one["share"] for one in found), default=1),
        trained={
            name: training.class_table(found, compared) for name, compared in training.trained(recipes, done).items()
        },
        layers=layers,
        sensitivity=Markup(chart(layers["layers"])) if layers else None,
        examples=[pictures.example(row, done, predictions, names) for row in rows],
    )
    write_text(path, html)


_HEADINGS = {name: heading for name, heading, _, _ in tables.COLUMNS} | {"speedup_eager": "x eager float32"}


def _filled(rows: list[Sequence[str]]) -> list[list[str]]:
    """Rows, the first of which are headings, without the columns that have nothing else."""
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    return [[row[i] for i in kept] for row in rows]


def _inline(name: str) -> Markup:
    return Markup((Path(__file__).parent / name).read_text())


def _protocol(done: dict[str, dict[str, Any]]) -> str:
    one = next(iter(done.values()), None)
    return f"{one['protocol']}, {one['n_images']} images" if one else "nothing measured"


_MACHINE = ("processor", "instructions", "cores", "memory_gb", "gpu")


def _machine(hardware: dict[str, Any]) -> str:
    parts = [f"{hardware['processor']} ({', '.join(hardware['instructions'])})", f"{hardware['cores']} cores"]
    if hardware.get("memory_gb"):
        parts.append(f"{hardware['memory_gb']} GB")
    return ", ".join([*parts, *([hardware["gpu"]] if hardware.get("gpu") else [])])


def _timing(done: dict[str, dict[str, Any]], hardware: dict[str, Any]) -> str:
    """What speed was measured on."""
    speed = next(filter(None, map(tables.timed, done.values())), None)
    if not speed:
        return "not timed"
    height, width = speed["input_size"]
    where = _machine(hardware) if speed["device"] == "cpu" else speed["device"]
    return f"images of {height}x{width} on {where}, {speed['threads']} threads"


def _cells(results: dict[str, dict[str, Any]], method: str) -> list[tuple[str, str]]:
    """(value, range) of each column of ORDER."""
    texts = dict(zip((name for name, *_ in tables.COLUMNS), tables.cells(results, method)))
    cells = []
    for name in ORDER:
        ends = [texts[end] for end in RANGES.get(name, ())]
        cells.append((texts[name], " to ".join(ends) if all(ends) else ""))
    return cells


def heat(points: float | None) -> str:
    """The CSS class and strength of a loss in points; none for one that is shown as 0.0."""
    if points is None or not round(points, 1):
        return ""
    strength = min(1.0, math.sqrt(abs(points) / FULL))
    return Markup(f'class="{"loss" if points > 0 else "gain"}" style="--heat: {strength:.2f}"')
