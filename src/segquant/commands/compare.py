"""Compare two results, with confidence intervals over images."""

from __future__ import annotations

import argparse
from pathlib import Path

from segquant.base.text import say_json


def options(parser: argparse.ArgumentParser) -> None:
    for name in ("first", "second"):
        parser.add_argument(name, help="method, or a Parquet file with one confusion matrix per image")
    parser.add_argument(
        "--metrics",
        type=Path,
        default=Path("metrics"),
        help="folder of the methods' results: that of dvc repro (default: metrics) or the --output of segquant run",
    )


def main(arguments: argparse.Namespace) -> None:
    from segquant.evaluation.bootstrap import compare
    from segquant.evaluation.counts import locate_counts, read_counts
    from segquant.report import terminal

    names = arguments.first, arguments.second
    comparison = compare(*(read_counts(locate_counts(arguments.metrics, name)) for name in names))
    if arguments.json:
        say_json(comparison)
    else:
        terminal.show_comparison(*names, comparison)
