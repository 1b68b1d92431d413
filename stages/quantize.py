"""Quantize the baseline by one method of params.yaml into an artifact folder."""

import argparse

from segquant import config, models
from segquant.data.calibration import calibration_batch, spread
from segquant.data.shards import read_manifest, read_rows
from segquant.entry import run
from segquant.files import write_json
from segquant.quant.build import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("method", "baseline", "shards", "output", "times"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params = config.load()
    params.wandb.resolve()
    (recipe,) = params.quant.choose([a.method]).values()
    images = None
    if recipe.calibration_images:
        total, count = read_manifest(a.shards)["splits"]["train"]["images"], recipe.calibration_images
        chosen, normalization = set(spread(total, count)), models.normalization(a.baseline)
        rows = (row for i, row in enumerate(read_rows(a.shards, "train")) if i in chosen)
        images = calibration_batch(rows, params.protocol, normalization)
    times = build(a.baseline, recipe, a.output, models.device(params.eval.device), images)
    if "unavailable" in times:
        print(f"{a.method} is unavailable: {times['unavailable']}")
    write_json(a.times, times)


if __name__ == "__main__":
    run(main)
