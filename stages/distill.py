"""Distill a larger teacher into a smaller student on the train split; a killed run resumes from its checkpoint."""

import argparse

from segquant import tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.training.distill import make_student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    parser.add_argument("--checkpoint", required=True)
    arguments = parser.parse_args()
    params = config.load()
    tracking.login(params.wandb)
    with tracking.training(params.wandb, "distill", params.distill) as record:
        make_student(params, arguments.output, arguments.checkpoint, record)


if __name__ == "__main__":
    run(main)
