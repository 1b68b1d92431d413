"""The columns of every table of methods: on the terminal and the page, in results.csv, Markdown and W&B."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from segquant.report.results import Result


@dataclass(frozen=True)
class Column:
    """One figure of a method.

    `key` names it in results.csv and W&B, `heading` in tables that people read (empty: in none of them), and `meaning`
    explains it. `get` takes it from a measured Result: a number, a text, or None where it is not known. Rank 0 is
    the most important: a table with little space takes columns by `rank`, and those without a rank last. `ends` are the
    keys of the two columns that hold the figure's range.
    """

    key: str
    heading: str
    meaning: str
    get: Callable[[Result], Any]
    decimals: int = 0
    rank: int | None = None
    ends: tuple[str, str] | None = None

    def text(self, result: Result) -> str:
        """The figure as every table shows it; empty where it is not known."""
        value = self.get(result)
        return value if isinstance(value, str) else number(value, self.decimals)

    def range(self, result: Result) -> str:
        """The figure's range, "LOW to HIGH"; empty where there is none."""
        ends = [COLUMN[end].text(result) for end in self.ends or ()]
        return " to ".join(ends) if all(ends) else ""


def number(value: float | None, decimals: int) -> str:
    """A number with so many decimals, and 0.00 for -0.00; empty for None."""
    return "" if value is None else f"{round(value, decimals) + 0.0:.{decimals}f}"


def _accuracy(key: str) -> Callable[[Result], Any]:
    return lambda result: result.accuracy.get(key)


def _percent(key: str) -> Callable[[Result], float | None]:
    return lambda result: None if result.accuracy.get(key) is None else 100 * result.accuracy[key]


def _end(which: int) -> Callable[[Result], float | None]:
    return lambda result: result.loss_interval[which] if result.loss_interval else None


def _timed(*keys: str) -> Callable[[Result], float | None]:
    """A figure of `Result.timing`, found by the keys of nested dicts; None where it is missing."""

    def get(result: Result) -> float | None:
        value = result.timing
        for key in keys:
            value = (value or {}).get(key)
        return value

    return get


ALL = (  # in the order of results.csv
    Column("method", "method", "Its name in params.yaml", attrgetter("method"), rank=0),
    Column("algorithm", "algorithm", "How the codes were found", _accuracy("algorithm"), rank=13),
    Column("engine", "engine", "What runs it", attrgetter("engine"), rank=12),
    Column(
        "mean_iou", "mIoU %", "Intersection over union, mean over classes, percent", _percent("mean_iou"), 2, rank=1
    ),
    Column(
        "loss_points",
        "loss",
        "Points of mIoU below float32",
        attrgetter("loss"),
        2,
        rank=2,
        ends=("loss_low", "loss_high"),
    ),
    Column("loss_low", "loss from", "Lower end of the loss's 95 % interval over images", _end(0), 2),
    Column("loss_high", "to", "Upper end of the loss's 95 % interval over images", _end(1), 2),
    Column(
        "mean_accuracy",
        "mean acc %",
        "Share of right pixels, mean over classes, percent",
        _percent("mean_accuracy"),
        2,
        rank=10,
    ),
    Column(
        "overall_accuracy",
        "pixel acc %",
        "Share of the labelled pixels that are right, percent",
        _percent("overall_accuracy"),
        2,
        rank=11,
    ),
    Column(
        "agreement", "agree %", "Share of all pixels with float32's class, percent", _percent("agreement"), 2, rank=8
    ),
    Column("size_mb", "MB", "Size of the weights' file, megabytes (10^6 bytes)", attrgetter("size_mb"), 2, rank=3),
    Column("compression", "x smaller", "Times smaller than float32's file", _accuracy("compression"), 2, rank=4),
    Column(
        "quantized_percent",
        "quantized %",
        "Share of the parameters that are quantized, percent",
        _percent("quantized_fraction"),
        1,
        rank=14,
    ),
    Column(
        "quantize_seconds",
        "quantize s",
        "Time to calibrate and train, seconds",
        attrgetter("quantize_seconds"),
        1,
        rank=15,
    ),
    Column(
        "latency_ms",
        "p50 ms",
        "Median latency, milliseconds. Methods are timed minutes apart: compare the ratios",
        _timed("latency_ms", "p50"),
        rank=5,
    ),
    Column("latency_p90_ms", "p90 ms", "90th percentile of latency, milliseconds", _timed("latency_ms", "p90")),
    Column(
        "speedup",
        "x float32",
        "Times as fast as float32 on the same engine, median of pairs",
        _timed("relative_to_float32", "median"),
        2,
        rank=7,
        ends=("speedup_min", "speedup_max"),
    ),
    Column("speedup_min", "min", "Lowest ratio of these pairs", _timed("relative_to_float32", "min"), 2),
    Column("speedup_max", "max", "Highest ratio of these pairs", _timed("relative_to_float32", "max"), 2),
    Column(
        "speedup_eager",
        "x eager",
        "Times as fast as PyTorch's eager float32, median of pairs",
        lambda result: (result.speedup_eager or {}).get("median"),
        2,
        rank=6,
    ),
    Column(
        "memory_mb", "memory MB", "Peak memory that loading and running add, megabytes", attrgetter("memory_mb"), rank=9
    ),
    Column("load_seconds", "load s", "Time to load, seconds", _timed("load_seconds"), 2, rank=16),
    Column(
        "relative_latency", "", "Latency as a multiple of PyTorch's eager float32", attrgetter("relative_latency"), 3
    ),
)
COLUMN = {column.key: column for column in ALL}
SHOWN = tuple(column for column in ALL if column.heading)
RANKED = sorted((column for column in SHOWN if column.rank is not None), key=lambda column: column.rank)

LANES = (  # of the table by engine and batch size, which has a row for each of `Result.lanes`
    COLUMN["method"],
    Column("lane", "engine", "What runs it", lambda result: result.speed["engine"], rank=1),
    Column("batch_size", "batch", "Images in a batch", lambda result: result.speed["batch_size"], rank=2),
    COLUMN["latency_ms"],
    COLUMN["latency_p90_ms"],
    Column("images_per_second", "images/s", "Images a second", _timed("images_per_second"), 2, rank=3),
    COLUMN["speedup"],
    COLUMN["speedup_min"],
    COLUMN["speedup_max"],
    Column("pairs", "n", "Pairs that were timed", _timed("latency_ms", "n")),
    replace(COLUMN["speedup_eager"], get=_timed("relative_to_eager", "median")),  # x float32 has PyTorch's own
    Column("compile_seconds", "compile s", "Time to compile, seconds", _timed("compile_seconds"), rank=4),
)
