"""Copy the metrics and confusion of the selected method to the paths that `dvc metrics` and `dvc plots` compare."""

import argparse
from pathlib import Path

from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import read_json, write_json, write_text
from segquant.evaluation.counts import HEADER, read_counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("results", "output", "confusion"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    method = config.load().quant.method
    folder = Path(arguments.results) / method
    metrics = read_json(folder / "metrics.json")
    evaluated = "unavailable" not in metrics
    confusion = read_counts(folder / "confusion.parquet").confusion_csv() if evaluated else HEADER
    write_text(arguments.confusion, confusion)
    write_json(arguments.output, {"method": method, **metrics})


if __name__ == "__main__":
    run(main)
