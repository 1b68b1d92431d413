"""Measure time and peak memory of preparing shards, with a separate process for each number of images.

python benchmarks/preparation.py --images 2000 20000                  # built-in scenes
python benchmarks/preparation.py --data FOLDER --split training --images 2000 20000
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from segquant.base.entry import run
from segquant.data.shards import write_shards
from segquant.data.sources import open_source


def prepare(data: str, split: str, count: int) -> None:
    """Prepare shards of `count` images and print time and peak memory, which the kernel counts per process."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        manifest = write_shards({split: open_source(data, split, count)}, Path(folder) / "shards")
        seconds = time.perf_counter() - start
    images, shards = manifest["splits"][split]["images"], manifest["splits"][split]["shards"]
    size = sum(shard["bytes"] for shard in shards)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{images} images of {data} ({split}): {seconds:.0f} s, {images / seconds:.0f} images/s, "
        f"{len(shards)} shards with {size / 1e6:.0f} MB in total, {peak:.0f} MB peak memory",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, nargs="+", default=[2000, 20000])
    arguments = parser.parse_args()
    for count in arguments.images:
        child = os.fork()
        if not child:
            prepare(arguments.data, arguments.split, count)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(2)


if __name__ == "__main__":
    run(main)
