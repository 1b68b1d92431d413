"""Score one artifact on the validation shards and log the evaluation to W&B."""

import argparse
from pathlib import Path

from segquant import tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.base.ranks import ranks
from segquant.data.shards import open_shards, read_manifest
from segquant.engines.runtimes import load
from segquant.evaluation.score import class_rows, score, write_scores
from segquant.evaluation.shardwise import kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    for name in ("artifact", "shards", "reference", "partial", "metrics", "classes", "pictures"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params = config.load()
    (recipe,) = params.quant.choose([a.method]).values()
    tracking.login(params.wandb)
    names = read_manifest(a.shards)["classes"]
    with kept(a.partial):
        metrics, result = score(
            a.artifact,
            open_shards(a.shards, "validation"),
            names,
            protocol=params.protocol,
            reference=a.reference,
            label_map=params.data.label_map,
            settings=params.eval,
            partial=Path(a.partial),
            name=a.method,
            load=load,
        )
        if ranks()[0]:
            return
        write_scores(metrics, result, names, a.metrics, a.classes, a.pictures)
    if result:
        tracking.log_evaluation(params.wandb, a.method, recipe, metrics, class_rows(result, names))


if __name__ == "__main__":
    run(main)
