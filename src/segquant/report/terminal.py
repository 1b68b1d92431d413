"""The tables on a terminal, or as plain text where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from segquant.base.text import on_terminal
from segquant.evaluation.bootstrap import FEWEST, METRICS
from segquant.report.columns import COLUMN, LANES, RANKED, SHOWN, Column
from segquant.report.notes import footnotes
from segquant.report.results import Result, measured
from segquant.report.tables import cells, lanes


def show(results: Mapping[str, Result], hardware: Mapping[str, Any] | None = None) -> None:
    """Print the table to stdout: with colours on a terminal only, and there with as many columns as fit."""
    console, done = _console(), list(measured(results).values())
    columns = _fitting(done, console.width)
    console.print(_table([column.heading for column in columns], cells(done, columns)))
    if len(columns) < len(SHOWN):
        _print_notes(console, [f"{len(SHOWN) - len(columns)} more columns on a wider terminal or in a pipe."])
    _show_lanes(console, results)
    _print_notes(console, footnotes(results, hardware))


def show_several(data_sets: Mapping[str, Mapping[str, Result]], hardware: Mapping[str, Any] | None = None) -> None:
    """Print {data set: results} side by side: the accuracy on each, then the columns that do not depend on data."""
    console, first = _console(), next(iter(data_sets.values()))
    accuracy = [COLUMN[key] for key in ("mean_iou", "loss_points", "agreement")]
    common = [COLUMN[key] for key in ("size_mb", "compression", "latency_ms", "speedup")]
    headings = [f"{name}\n{column.heading}" for name in data_sets for column in accuracy]
    rows = []
    for method in first:
        done = [measured(results).get(method) for results in data_sets.values()]
        scores = [cells([result], accuracy)[0] if result else [""] * len(accuracy) for result in done]
        if any(done):
            rows.append([method, *sum(scores, []), *cells([next(filter(None, done))], common)[0]])
    console.print(_table(["method", *headings, *(f"\n{column.heading}" for column in common)], rows))
    _show_lanes(console, first)
    notes = {name: footnotes(results, hardware) for name, results in data_sets.items()}
    shared = [note for note in footnotes(first, hardware) if all(note in lines for lines in notes.values())]
    _print_notes(console, [f"{name}: {note}" for name, lines in notes.items() for note in lines if note not in shared])
    _print_notes(console, shared)


def show_comparison(first: str, second: str, comparison: Mapping[str, Any]) -> None:
    """Print what `evaluation.bootstrap.compare` gives for two results, in percent and points."""
    rows = []
    for key in METRICS:
        scores = comparison[key]
        low, high = 100 * scores["low"], 100 * scores["high"]
        verdict = "higher" if low > 0 else "lower" if high < 0 else "no clear difference"
        verdict = verdict if comparison["n_images"] >= FEWEST else "too few images to decide"
        values = f"{100 * scores['first']:.2f}", f"{100 * scores['second']:.2f}", f"{100 * scores['difference']:+.2f}"
        rows.append([COLUMN[key].heading, *values, f"{low:+.2f} to {high:+.2f}", verdict])
    console = _console()
    console.print(_table(["metric", first, second, "difference", "95 % interval", ""], rows))
    draws = f"{comparison['resamples']:,} draws of the same images for both, with replacement"
    _print_notes(console, [f"{comparison['protocol']}, {comparison['n_images']} images; intervals from {draws}."])


def _fitting(results: Sequence[Result], width: int) -> list[Column]:
    """As many columns as fit, the most important ones."""
    fitting, left = [], width + 2  # two blanks part columns
    for column in (*RANKED, *(column for column in SHOWN if column.rank is None)):
        left -= 2 + max(map(len, (column.heading, *(on_terminal(column.text(result)) for result in results))))
        if left < 0:
            break
        fitting.append(column)
    return [column for column in SHOWN if column in fitting]


def _console() -> Console:
    """As wide as the terminal; where there is none, as wide as the widest table."""
    console = Console(markup=False, emoji=False)  # names and reasons may hold [red] or :car:
    if not console.is_terminal:
        console.width = max(console.width, 240)
    return console


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    for number, heading in enumerate(headings):
        heading = "\n".join(map(on_terminal, heading.split("\n")))
        table.add_column(heading, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*map(on_terminal, row))
    return table


def _print_notes(console: Console, notes: Iterable[str]) -> None:
    for note in notes:
        console.print(on_terminal(note), style="dim", highlight=False, soft_wrap=True)


def _show_lanes(console: Console, results: Mapping[str, Result]) -> None:
    """The table by engine and batch size, where there are more of them than the first table shows."""
    rows = lanes(results)
    if len(rows) <= len(measured(results)):
        return
    columns = [column for column in LANES if console.width >= 100 or column.rank is not None]
    console.print(_table([column.heading for column in columns], cells(rows, columns), "Speed"))
