"""Tables of methods as text, CSV, Markdown and numbers: rows of Results, columns of `columns`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segquant.base.files import csv_text
from segquant.base.text import in_markdown
from segquant.report.columns import ALL, Column
from segquant.report.results import Result, measured


def cells(results: Iterable[Result], columns: Sequence[Column]) -> list[list[str]]:
    """A row of text for each result."""
    return [[column.text(result) for column in columns] for result in results]


def to_csv(results: Mapping[str, Result]) -> str:
    """results.csv: a line for each measured method."""
    return csv_text(cells(measured(results).values(), ALL), [column.key for column in ALL])


def values(results: Mapping[str, Result]) -> list[dict[str, Any]]:
    """{key of a column: value} for each measured method: numbers that are not rounded, None where there is none."""
    return [{column.key: column.get(result) for column in ALL} for result in measured(results).values()]


def markdown(results: Iterable[Result], columns: Sequence[Column]) -> str:
    """A Markdown table in which a figure's range, where it is known, stands behind it in brackets."""
    lines = [[column.heading for column in columns], ["---", *["---:"] * (len(columns) - 1)]]
    for result in results:
        texts = [(in_markdown(column.text(result)), column.range(result)) for column in columns]
        lines.append([f"{text} ({ends})" if ends else text for text, ends in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def lanes(results: Mapping[str, Result]) -> list[Result]:
    """A result for each engine and batch size, in the order of a table: compiled ones last, small batches first."""
    rows = [lane for result in measured(results).values() for lane in result.lanes]
    return sorted(rows, key=lambda lane: (lane.speed["engine"] == "compile", lane.speed["batch_size"]))
