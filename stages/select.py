"""Copy the selected method's metrics to the one stable path that `dvc metrics diff` compares."""

import argparse
from pathlib import Path

from segquant import config
from segquant.entry import run
from segquant.files import read_json, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    method = config.load().quant.method
    metrics = read_json(Path(arguments.results) / method / "metrics.json")
    write_json(arguments.output, {"method": method, **metrics})


if __name__ == "__main__":
    run(main)
