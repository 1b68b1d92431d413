"""Score one artifact on the validation shards and log the evaluation to W&B."""

from pathlib import Path

from segquant import tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.base.ranks import ranks
from segquant.data.shards import open_shards, read_manifest
from segquant.evaluation.score import class_rows, try_score, write_scores
from segquant.evaluation.shardwise import kept
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "method", "artifact", "shards", "reference", "partial", "metrics", "classes", "pictures")
    params = config.load()
    recipe = params.quant.choose([a.method])[a.method]
    tracking.login(params.wandb)
    names = read_manifest(a.shards)["classes"]
    with kept(a.partial):
        metrics, result = try_score(
            a.artifact,
            open_shards(a.shards, "validation"),
            names,
            protocol=params.protocol,
            reference=a.reference,
            label_map=params.data.label_map,
            settings=params.eval,
            partial=Path(a.partial),
        )
        if ranks()[0]:
            return
        write_scores(metrics, result, names, metrics_path=a.metrics, classes_path=a.classes, pictures_folder=a.pictures)
    if result:
        tracking.log_evaluation(params.wandb, a.method, recipe, metrics, class_rows(result, names))


if __name__ == "__main__":
    run(main)
