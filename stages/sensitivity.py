"""Score the baseline with each layer quantized alone; write a CSV, JSON and a plot. Not part of the default run."""

import argparse
from dataclasses import asdict

from segquant import models
from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import write_json, write_text
from segquant.data.label_map import load_label_map
from segquant.data.shards import read_manifest, read_rows
from segquant.evaluation.sensitivity import sensitivity, to_csv
from segquant.lineage import origin
from segquant.report.figure import standalone
from segquant.report.layers import chart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("baseline", "shards", "csv", "plot", "json"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params, manifest = config.load(), read_manifest(a.shards)
    classes = manifest["classes"]
    settings, model = params.sensitivity, models.load(a.baseline).to(models.device(params.eval.device))
    costs = sensitivity(
        model,
        list(read_rows(a.shards, "validation", settings.images)),
        settings,
        num_classes=len(classes),
        protocol=params.protocol,
        normalization=models.normalization(a.baseline),
        label_map=load_label_map(params.data.label_map, model.config.num_labels, classes),
    )
    write_text(a.csv, to_csv(costs))
    source = origin(a.baseline, manifest, params.protocol, params.data.label_map)
    write_json(a.json, {**source, **asdict(settings), "layers": costs})
    write_text(a.plot, standalone(chart(costs)))


if __name__ == "__main__":
    run(main)
