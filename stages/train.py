"""Train the built-in baseline on the data source's train split; a killed run resumes from its checkpoint."""

from segquant import tracking
from segquant.base import config
from segquant.base.entry import run
from segquant.training.baseline import make_baseline
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "output", "checkpoint")
    params = config.load()
    tracking.login(params.wandb)
    with tracking.training(params.wandb, "train", params.train) as record:
        make_baseline(params, a.output, a.checkpoint, record)


if __name__ == "__main__":
    run(main)
