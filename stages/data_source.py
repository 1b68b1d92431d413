"""Say which state the data source of params.yaml is in, so that what is made from it is made again when it changes."""

import argparse

from segquant import config
from segquant.data.fingerprint import fingerprint
from segquant.entry import run
from segquant.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    output = parser.parse_args().output
    write_json(output, fingerprint(config.load().data))


if __name__ == "__main__":
    run(main)
