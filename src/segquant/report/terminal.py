"""The tables on a terminal, or as plain text where there is none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from segquant.evaluation.bootstrap import FEWEST
from segquant.report.tables import COLUMNS, SPEED_HEADINGS, cells, footnotes, measured, speed_rows

# What counts most first: a terminal gets as many of tables.COLUMNS as fit.
FIRST = (
    "mean_iou",
    "loss_points",
    "size_mb",
    "speedup_eager",
    "agreement",
    "compression",
    "latency_ms",
    "speedup",
    "memory_mb",
)


def show(results: dict[str, dict[str, Any]], hardware: dict[str, Any] | None = None) -> None:
    """Print the table to stdout: with colours on a terminal only, and there with as many columns as fit."""
    console, table = _console_and_table()
    rows = {method: cells(results, method) for method in measured(results)}
    names = [name for name, *_ in COLUMNS]
    left = console.width - max(map(len, [*rows, "method"]))
    shown: set[int] = set()
    for name in (*FIRST, *(name for name in names if name not in FIRST)):
        at = names.index(name)
        left -= 2 + max(len(text) for text in (COLUMNS[at][1], *(row[at] for row in rows.values())))
        if left < 0:
            break
        shown.add(at)
    for at in sorted(shown):
        table.add_column(COLUMNS[at][1], justify="right", no_wrap=True)
    for method, row in rows.items():
        table.add_row(method, *(row[at] for at in sorted(shown)))
    console.print(table)
    if len(shown) < len(names):
        _print_notes(console, [f"{len(names) - len(shown)} more columns on a wider terminal or in a pipe."])
    _show_speed(console, results)
    _print_notes(console, footnotes(results, hardware))


def show_several(found: dict[str, dict[str, dict[str, Any]]], hardware: dict[str, Any] | None = None) -> None:
    """Print {data set: results} side by side: each one's accuracy, then what they have in common."""
    console, table = _console_and_table()
    first = next(iter(found.values()))
    apart, common = ("mean_iou", "loss_points", "agreement"), ("size_mb", "compression", "latency_ms", "speedup")
    headings = {name: heading for name, heading, _, _ in COLUMNS}
    for name in found:
        for column in apart:
            table.add_column(f"{name}\n{headings[column]}", justify="right")
    for column in common:
        table.add_column(f"\n{headings[column]}", justify="right")
    at = {name: i for i, (name, *_) in enumerate(COLUMNS)}
    for method in measured(first):
        rows = [cells(results, method) for results in found.values()]
        table.add_row(method, *(row[at[c]] for row in rows for c in apart), *(rows[0][at[c]] for c in common))
    console.print(table)
    _show_speed(console, first)
    notes = {name: footnotes(results, hardware) for name, results in found.items()}
    common_notes = [note for note in notes[next(iter(found))] if all(note in some for some in notes.values())]
    own = [f"{name}: {note}" for name, some in notes.items() for note in some if note not in common_notes]
    _print_notes(console, own + common_notes)


ACCURACY = {"mean_iou": "mIoU %", "mean_accuracy": "mean acc %", "overall_accuracy": "pixel acc %"}


def show_comparison(first: str, second: str, found: dict[str, Any]) -> None:
    """Print what `evaluation.bootstrap.compare` found of two results, in percent and points."""
    console, table = _console_and_table()
    for heading in (first, second, "difference", "95 % interval"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for key, heading in ACCURACY.items():
        one = found[key]
        low, high = 100 * one["low"], 100 * one["high"]
        clear = "higher" if low > 0 else "lower" if high < 0 else "no clear difference"
        clear = clear if found["n_images"] >= FEWEST else "too few images to tell"
        values = (f"{100 * one['first']:.2f}", f"{100 * one['second']:.2f}", f"{100 * one['difference']:+.2f}")
        table.add_row(heading, *values, f"{low:+.2f} to {high:+.2f}", clear)
    table.columns[0].header = "metric"
    console.print(table)
    draws = f"{found['resamples']:,} draws of the same images for both, with replacement"
    _print_notes(console, [f"{found['protocol']}, {found['n_images']} images; intervals from {draws}."])


def _console_and_table() -> tuple[Console, Table]:
    """As wide as the terminal, or all of it where there is none."""
    console = Console(markup=False)  # names and reasons may hold brackets
    if not console.is_terminal:
        console = Console(markup=False, width=max(console.width, 240))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("method", no_wrap=True)
    return console, table


def _print_notes(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print(note, style="dim", highlight=False, soft_wrap=True)


def _show_speed(console: Console, results: dict[str, dict[str, Any]]) -> None:
    """The lanes, where there are more than the table above tells of."""
    rows = speed_rows(results)
    if len(rows) <= len(measured(results)):
        return
    shown = [i for i, h in enumerate(SPEED_HEADINGS) if console.width >= 100 or h not in ("p90 ms", "min", "max", "n")]
    table = Table(box=None, header_style="bold", pad_edge=False, title="Speed", title_justify="left")
    for i in shown:
        table.add_column(SPEED_HEADINGS[i], justify="left" if i < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    console.print(table)
