"""Copy the float32 model of params.yaml from its folder, the hub or a URL to the output folder."""

import shutil

from segquant.base import config
from segquant.base.entry import run
from segquant.base.files import replacing
from segquant.base.hub import files, locate
from stages import arguments


def main() -> None:
    output = arguments(__doc__, "output").output
    model = config.load().model
    folder = locate(model.source, model.revision, model.sha256)
    with replacing(output) as part:
        part.mkdir()
        for file in files(folder):
            shutil.copyfile(file, part / file.name)


if __name__ == "__main__":
    run(main)
