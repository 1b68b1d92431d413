"""Quantize the baseline by one method of params.yaml into an artifact folder; a training that is killed goes on."""

import argparse
from functools import partial
from pathlib import Path

from segquant import tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.base.ranks import ranks
from segquant.lanes import quantize_lane


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("method", "baseline", "shards", "exports", "trained", "output", "times"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params = config.load()
    tracking.login(params.wandb)
    (recipe,) = params.quant.choose([a.method]).values()
    record = partial(tracking.training, params.wandb, a.method, recipe.train)
    trained = Path(a.trained) / a.method
    times = quantize_lane(params, a.method, a.baseline, a.shards, a.exports, a.output, trained, record)
    if not ranks()[0]:
        write_json(a.times, times)
        if "unavailable" in times:
            print(f"{a.method} is unavailable: {times['unavailable']}")


if __name__ == "__main__":
    run(main)
