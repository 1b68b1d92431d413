"""Quantize the baseline by one method of params.yaml into an artifact folder."""

import argparse

from segquant import config, models
from segquant.entry import run
from segquant.quant.build import build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    params = config.load()
    params.wandb.resolve()
    (recipe,) = params.quant.choose([arguments.method]).values()
    reason = build(params.model.source, recipe, arguments.output, models.device(params.eval.device))
    if reason:
        print(f"{arguments.method} is unavailable: {reason}")


if __name__ == "__main__":
    run(main)
