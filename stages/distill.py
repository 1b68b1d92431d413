"""Distill a larger teacher into a smaller student on the train split; a killed run resumes from its checkpoint."""

from segquant import tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.training.distill import make_student
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "output", "checkpoint")
    params = config.load()
    tracking.login(params.wandb)
    with tracking.training(params.wandb, "distill", params.distill) as record:
        make_student(params, a.output, a.checkpoint, record)


if __name__ == "__main__":
    run(main)
