"""Write the state of the data source in params.yaml, so that DVC prepares the shards again when it changes."""

from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.base.hub import files, locate
from segquant.data.fingerprint import fingerprint
from stages import arguments


def main() -> None:
    output = arguments(__doc__, "output").output
    params = config.load()
    state = fingerprint(params.data)
    if "commit" in state:  # before data are downloaded, because the next stage does that
        files(locate(params.model.source, params.model.revision, params.model.sha256))
    write_json(output, state)


if __name__ == "__main__":
    run(main)
