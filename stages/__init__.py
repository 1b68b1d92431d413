"""One thin script a stage."""

import argparse
import gc
import os

if "SEGQUANT_WARM" in os.environ:  # set by `python -m segquant.warm`, on Linux alone
    from segquant.warm import hand_over

    hand_over()
gc.disable()  # until base.entry.run: collecting while torch and transformers are imported takes 1.4 of 5 s


def arguments(description: str | None, *names: str) -> argparse.Namespace:
    """The stage's command line: `--NAME VALUE` for each of `names`, all required."""
    parser = argparse.ArgumentParser(description=description)
    for name in names:
        parser.add_argument(f"--{name}", required=True)
    return parser.parse_args()
