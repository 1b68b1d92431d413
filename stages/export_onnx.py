"""Export the baseline as ONNX in float32 and float16, or record why this machine cannot."""

from segquant.base import config
from segquant.base.entry import run
from segquant.deploy.onnx_export import write_exports
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "baseline", "output")
    config.load().wandb.resolve()
    write_exports(a.baseline, a.output)


if __name__ == "__main__":
    run(main)
