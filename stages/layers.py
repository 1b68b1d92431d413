"""Copy the sensitivity of each layer for the report, if it was measured on this model, data set and protocol."""

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
    arguments = parser.parse_args()
    params = config.load()
    sensitivity = read_json(arguments.sensitivity) if Path(arguments.sensitivity).is_file() else {}
    current = origin(arguments.baseline, read_manifest(arguments.shards), params.protocol, params.data.label_map)
    write_json(arguments.output, sensitivity if current.items() <= sensitivity.items() else {})


if __name__ == "__main__":
    run(main)
