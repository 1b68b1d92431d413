"""What each layer costs alone, where `sensitivity` was run on this very model by this protocol, for the report."""

import argparse
from pathlib import Path

from segquant import config
from segquant.entry import run
from segquant.files import read_json, sha256, write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("sensitivity", "baseline", "output"):
        parser.add_argument(f"--{name}", required=True)
    a = parser.parse_args()
    found = read_json(a.sensitivity) if Path(a.sensitivity).is_file() else {}
    here = sha256(Path(a.baseline) / "model.safetensors"), config.load().protocol
    write_json(a.output, found if (found.get("model"), found.get("protocol")) == here else {})


if __name__ == "__main__":
    run(main)
