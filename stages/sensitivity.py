"""Score the baseline with each layer quantized alone; write a CSV, JSON and a plot. Not part of the default run."""

from dataclasses import asdict

from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import write_json, write_text
from segquant.data.shards import read_manifest, read_rows
from segquant.evaluation.sensitivity import layers, to_csv
from segquant.lineage import origin
from segquant.report.figure import standalone
from segquant.report.layers import chart
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "baseline", "shards", "csv", "plot", "json")
    params, manifest = config.load(), read_manifest(a.shards)
    classes = manifest["classes"]
    options, label_map = params.sensitivity, params.data.label_map
    rows = list(read_rows(a.shards, "validation", options.images))
    losses = layers(params, options, a.baseline, rows, classes, label_map)
    write_text(a.csv, to_csv(losses))
    made_from = origin(a.baseline, manifest, params.protocol, label_map)
    write_json(a.json, {**made_from, **asdict(options), "layers": losses})
    write_text(a.plot, standalone(chart(losses)))


if __name__ == "__main__":
    run(main)
