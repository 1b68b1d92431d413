"""Quantize the baseline by one method of params.yaml into an artifact folder; a training that is killed goes on."""

import argparse
from functools import partial
from pathlib import Path

from segquant import config, models, tracking
from segquant.data.calibration import calibration_images
from segquant.entry import run
from segquant.files import write_json
from segquant.quant.build import build
from segquant.ranks import ranks
from segquant.training.qat import from_shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("method", "baseline", "shards", "trained", "output", "times"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params = config.load()
    params.wandb.resolve()
    (recipe,) = params.quant.choose([a.method]).values()
    if recipe.train:
        record = partial(tracking.training, params.wandb, a.method, recipe.train)
        times = from_shards(params, a.method, a.baseline, a.shards, a.output, Path(a.trained) / a.method, record)
    elif not ranks()[0]:
        images, count = None, recipe.calibration_images
        if count:
            images = calibration_images(a.shards, count, params.protocol, models.normalization(a.baseline))
        times = build(a.baseline, recipe, a.output, models.device(params.eval.device), images)
    if not ranks()[0]:
        write_json(a.times, times)
        if "unavailable" in times:
            print(f"{a.method} is unavailable: {times['unavailable']}")


if __name__ == "__main__":
    run(main)
