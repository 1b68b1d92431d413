"""One thin script a stage."""

import argparse
import gc
import os
from pathlib import Path

if address := os.environ.get("SEGQUANT_WARM"):  # set by `python -m segquant.warm`, on Linux alone
    from segquant.pace import announce
    from segquant.warm import hand_over

    announce(Path(address).with_name("started"))
    hand_over()
gc.disable()  # until base.entry.run: collecting while torch and transformers are imported takes 1.4 of 5 s


def arguments(description: str | None, *names: str) -> argparse.Namespace:
    """The stage's command line: `--NAME VALUE` for each of `names`, all required."""
    parser = argparse.ArgumentParser(description=description)
    for name in names:
        parser.add_argument(f"--{name}", required=True)
    return parser.parse_args()
