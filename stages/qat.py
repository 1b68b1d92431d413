"""Train a method of params.yaml beforehand, for its quantize stage to take; a training that is killed goes on."""

import argparse
from functools import partial

from segquant import tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.base.ranks import ranks
from segquant.lanes import quantize_lane


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("method", "baseline", "shards", "output"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params = config.load()
    tracking.login(params.wandb)
    (recipe,) = params.quant.choose([a.method]).values()
    record = partial(tracking.training, params.wandb, a.method, recipe.train)
    folder = f"{a.output}/{a.method}"
    times = quantize_lane(params, a.method, a.baseline, a.shards, "", folder, recording=record)
    if not ranks()[0]:
        write_json(f"{a.output}/{a.method}.json", times)


if __name__ == "__main__":
    run(main)
