"""Copy the metrics and confusion of the selected method to the paths that `dvc metrics` and `dvc plots` compare."""

from pathlib import Path

from segquant.base import config
from segquant.base.entry import run
from segquant.base.failures import missing
from segquant.base.files import csv_text, read_json, write_json, write_text
from segquant.evaluation.counts import HEADER, read_counts
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "results", "output", "confusion")
    method = config.load().quant.method
    folder = Path(a.results) / method
    metrics = read_json(folder / "metrics.json")
    evaluated = not missing(metrics)
    confusion = read_counts(folder / "confusion.parquet").confusion_csv() if evaluated else csv_text([], HEADER)
    write_text(a.confusion, confusion)
    write_json(a.output, {"method": method, **metrics})


if __name__ == "__main__":
    run(main)
