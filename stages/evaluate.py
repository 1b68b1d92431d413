"""Score one artifact on the validation shards and log the evaluation to W&B."""

import argparse

from segquant import config, models, tracking
from segquant.data.shards import read_manifest, read_rows
from segquant.entry import run
from segquant.evaluation.score import class_rows, score, write_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    for name in ("artifact", "shards", "reference", "metrics", "classes", "pictures"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params = config.load()
    (recipe,) = params.quant.choose([a.method]).values()
    params.wandb.resolve()
    manifest = read_manifest(a.shards)
    total, names = manifest["splits"]["validation"]["images"], manifest["classes"]
    metrics, result = score(
        a.artifact, read_rows(a.shards, "validation"), total, names, protocol=params.protocol,
        reference=a.reference, label_map=params.data.label_map, device=models.device(params.eval.device),
        batch_size=params.eval.batch_size, pictures=params.eval.pictures, name=a.method,
    )  # fmt: skip
    write_scores(metrics, result, names, a.metrics, a.classes, a.pictures)
    if result:
        tracking.log_evaluation(params.wandb, a.method, recipe, metrics, class_rows(result, names))


if __name__ == "__main__":
    run(main)
