"""Write a digest of each room that a stage of every method runs. Its lanes depend on this one file.

The rooms stand once in dvc.yaml, in the deps of `code_STAGE`, and not again in dvc.lock for every lane.
"""

import re
from pathlib import Path

import yaml

from segquant.base.entry import run
from segquant.base.files import digest, sha256, write_json
from stages import arguments

SOURCE = re.compile(r"\w+\.(py|js|css|html)")  # not what editors leave beside it


def main() -> None:
    a = arguments(__doc__, "stage", "output")
    stages = yaml.safe_load(Path("dvc.yaml").read_text())["stages"]
    write_json(a.output, {room: room_digest(Path(room)) for room in stages[f"code_{a.stage}"]["deps"]})


def room_digest(room: Path) -> str:
    """SHA-256 (hexadecimal) of a module, or of the names and bytes of a folder's."""
    if room.is_file():
        return sha256(room)
    files = sorted(path for path in room.rglob("*") if SOURCE.fullmatch(path.name))
    return digest({str(path.relative_to(room)): sha256(path) for path in files})


if __name__ == "__main__":
    run(main)
