"""Write results.csv and the HTML page; `segquant report` prints the table."""

import argparse
from pathlib import Path

from segquant import config
from segquant.data.shards import read_manifest, read_rows
from segquant.entry import run
from segquant.files import read_json, write_text
from segquant.report import advice, page, tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("metrics", "shards", "csv", "page"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params = config.load()
    results = tables.collect(a.metrics, params.quant.methods, "predictions/{}/metrics.json")
    advice.add_intervals(results, Path(a.metrics) / "predictions")
    hardware = read_json(Path(a.metrics) / "hardware.json")
    classes = read_manifest(a.shards)["classes"]
    rows = read_rows(a.shards, "validation", params.eval.pictures)
    write_text(a.csv, tables.to_csv(results))
    pictures = Path(a.metrics) / "predictions"
    layers = read_json(Path(a.metrics) / "layers.json")
    page.write_page(a.page, results, rows, pictures, classes, hardware, params.quant.methods, layers)


if __name__ == "__main__":
    run(main)
