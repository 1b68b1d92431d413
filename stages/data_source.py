"""Write the state of the data source in params.yaml, so that DVC prepares the shards again when it changes."""

import argparse

from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.data.fingerprint import fingerprint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    output = parser.parse_args().output
    write_json(output, fingerprint(config.load().data))


if __name__ == "__main__":
    run(main)
