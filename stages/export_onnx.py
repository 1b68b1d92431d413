"""Export the float32 baseline as ONNX, float32 and float16; without the extra, say so."""

import argparse

from segquant.base import config
from segquant.base.entry import run
from segquant.deploy.onnx_export import write_exports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("baseline", "output"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    config.load().wandb.resolve()
    write_exports(a.baseline, a.output)


if __name__ == "__main__":
    run(main)
