"""Write the state of the data source in params.yaml, so that DVC prepares the shards again when it changes."""

from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.data.fingerprint import fingerprint
from stages import arguments


def main() -> None:
    output = arguments(__doc__, "output").output
    write_json(output, fingerprint(config.load().data))


if __name__ == "__main__":
    run(main)
