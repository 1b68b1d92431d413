"""Copy the sensitivity of each layer for the report, if it was measured on this model, data set and protocol."""

from pathlib import Path

from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import read_json, write_json
from segquant.data.shards import read_manifest
from segquant.lineage import origin
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "sensitivity", "baseline", "shards", "output")
    params = config.load()
    sensitivity = read_json(a.sensitivity) if Path(a.sensitivity).is_file() else {}
    current = origin(a.baseline, read_manifest(a.shards), params.protocol, params.data.label_map)
    write_json(a.output, sensitivity if current.items() <= sensitivity.items() else {})


if __name__ == "__main__":
    run(main)
