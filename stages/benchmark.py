"""Measure one artifact's speed, memory and load time, in this fresh process."""

import argparse

from segquant import models
from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.evaluation.speed import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("artifact", "float32", "exports", "output"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    params = config.load()
    device = models.device(params.eval.device)
    write_json(a.output, measure(a.artifact, a.float32, params.speed, device, a.exports))


if __name__ == "__main__":
    run(main)
