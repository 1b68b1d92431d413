"""Write the hardware that speed depends on, and the GPU and libraries that accuracy depends on."""

import argparse

from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.base.hardware import environment, probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--environment", required=True)
    arguments = parser.parse_args()
    write_json(arguments.hardware, probe())
    write_json(arguments.environment, environment())


if __name__ == "__main__":
    run(main)
