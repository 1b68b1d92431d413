"""Measure one artifact's speed, memory and load time, in this fresh process."""

from pathlib import Path

from segquant.base import config
from segquant.base.entry import run
from segquant.base.failures import failure, missing
from segquant.base.files import read_json, write_json
from stages import arguments


def main() -> None:
    a = arguments(__doc__, "artifact", "float32", "exports", "output")
    if reason := missing(read_json(Path(a.artifact) / "quantization.json")):
        write_json(a.output, reason)
        return
    from segquant import models  # imports of seconds, for artifacts that hold a model
    from segquant.evaluation.speed import measure

    params = config.load()
    device = models.device(params.eval.device)
    try:
        speed = measure(a.artifact, a.float32, params.speed, device, a.exports)
    except Exception as error:  # engines raise many types
        speed = failure(f"timing {Path(a.artifact).name}", error)
    write_json(a.output, speed)


if __name__ == "__main__":
    run(main)
