"""Quantize the baseline by one method of params.yaml into an artifact folder; a killed training continues."""

from functools import partial
from pathlib import Path

from segquant import lanes, tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.base.failures import missing
from segquant.base.files import write_json
from segquant.base.ranks import ranks
from segquant.base.text import say
from segquant.training.split import split_of_shards
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "method", "baseline", "shards", "exports", "trained", "output", "times")
    params = config.load()
    tracking.login(params.wandb)
    recipe = params.quant.choose([a.method])[a.method]
    times = lanes.quantize(
        params,
        a.method,
        a.baseline,
        a.output,
        lambda: split_of_shards(params, a.baseline, a.shards),
        exports=a.exports,
        checkpoint=Path("models/checkpoints") / f"{a.method}.pt",
        trained=Path(a.trained) / a.method,
        recording=partial(tracking.training, params.wandb, a.method, recipe.train),
    )
    if not ranks()[0]:
        write_json(a.times, times)
        for kind, reason in missing(times).items():
            say(f"{a.method} {kind}: {reason}")


if __name__ == "__main__":
    run(main)
