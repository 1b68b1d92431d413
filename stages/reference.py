"""Keep the float32 baseline's class maps of the validation images, which agreement is counted against."""

import argparse

from segquant import config, models
from segquant.data.shards import read_manifest, read_rows
from segquant.entry import run
from segquant.evaluation.reference import write_reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("baseline", "shards", "output"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    params = config.load()
    params.wandb.resolve()
    total = read_manifest(arguments.shards)["splits"]["validation"]["images"]
    rows = read_rows(arguments.shards, "validation")
    write_reference(
        arguments.baseline, rows, total, arguments.output, protocol=params.protocol,
        batch_size=params.eval.batch_size, device=models.device(params.eval.device),
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
