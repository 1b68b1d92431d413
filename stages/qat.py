"""Train a method of params.yaml beforehand, for its quantize stage to take; a killed training continues."""

from functools import partial
from pathlib import Path

from segquant import lanes, tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.base.errors import ConfigError
from segquant.base.files import write_json
from segquant.base.ranks import ranks
from segquant.training.split import split_of_shards
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "method", "baseline", "shards", "output")
    params = config.load()
    tracking.login(params.wandb)
    recipe = params.quant.choose([a.method])[a.method]
    if not recipe.train:
        raise ConfigError(f"{a.method} in params.yaml has no train section: there is nothing to train")
    times = lanes.quantize(
        params,
        a.method,
        a.baseline,
        f"{a.output}/{a.method}",
        lambda: split_of_shards(params, a.baseline, a.shards),
        exports="",
        checkpoint=Path("models/checkpoints") / f"{a.method}.pt",
        recording=partial(tracking.training, params.wandb, a.method, recipe.train),
        may_fail=False,
    )
    if not ranks()[0]:
        write_json(f"{a.output}/{a.method}.json", times)


if __name__ == "__main__":
    run(main)
