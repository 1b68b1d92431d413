"""Write the float32 baseline's class maps of the validation images, the reference for agreement."""

import argparse
from pathlib import Path

from segquant.base import config
from segquant.base.entry import run
from segquant.data.shards import open_shards
from segquant.evaluation.reference import write_reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("baseline", "shards", "partial", "output"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
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
