"""Export the baseline as ONNX in float32 and float16, or record why this machine cannot."""

import argparse

from segquant.base import config
from segquant.base.entry import run
from segquant.deploy.onnx_export import write_exports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("baseline", "output"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    config.load().wandb.resolve()
    write_exports(arguments.baseline, arguments.output)


if __name__ == "__main__":
    run(main)
