"""Write the hardware that speed depends on, and the GPU and libraries that accuracy depends on."""

from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.base.hardware import environment, probe
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "hardware", "environment")
    write_json(a.hardware, probe())
    write_json(a.environment, environment())


if __name__ == "__main__":
    run(main)
