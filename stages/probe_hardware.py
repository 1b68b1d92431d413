"""Write what this machine is; the same bytes on the same machine."""

import argparse

from segquant.entry import run
from segquant.files import write_json
from segquant.hardware import probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", required=True)
    write_json(parser.parse_args().output, probe())


if __name__ == "__main__":
    run(main)
