"""Write the float32 baseline's class maps of the validation images, the reference for agreement."""

from pathlib import Path

from segquant.base import config
from segquant.base.entry import run
from segquant.data.shards import open_shards
from segquant.evaluation.reference import write_reference
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "baseline", "shards", "partial", "output")
    params = config.load()
    params.wandb.resolve()
    write_reference(
        a.baseline,
        open_shards(a.shards, "validation"),
        a.output,
        protocol=params.protocol,
        settings=params.eval,
        partial=Path(a.partial),
    )


if __name__ == "__main__":
    run(main)
