"""Train the built-in baseline on the data source's train split; a killed run goes on from its checkpoint."""

import argparse

from segquant import config
from segquant.entry import run
from segquant.training.baseline import make_baseline

COMMAND = "dvc unfreeze models/dvc.yaml:train && dvc repro models/dvc.yaml:train && dvc freeze models/dvc.yaml:train"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--checkpoint", required=True)
    arguments = parser.parse_args()
    make_baseline(config.load(), arguments.output, arguments.checkpoint, COMMAND)


if __name__ == "__main__":
    run(main)
