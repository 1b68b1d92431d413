"""What each layer costs alone, where `sensitivity` was run on this very model, data and protocol, for the report."""

import argparse
from pathlib import Path

from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import read_json, write_json
from segquant.data.shards import read_manifest
from segquant.lineage import origin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("sensitivity", "baseline", "shards", "output"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    found = read_json(a.sensitivity) if Path(a.sensitivity).is_file() else {}
    params = config.load()
    here = origin(a.baseline, read_manifest(a.shards), params.protocol, params.data.label_map)
    write_json(a.output, found if here.items() <= found.items() else {})


if __name__ == "__main__":
    run(main)
