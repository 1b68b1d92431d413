"""Speed of an artifact of any engine.

Run as `python -m segquant.deploy.speed` so that the process is fresh: memory is this artifact's own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from segquant import models
from segquant.base.config import Speed
from segquant.base.entry import run
from segquant.base.files import write_json
from segquant.base.validate import build
from segquant.engines.extras import exports_lack, refused_size
from segquant.engines.runtimes import load, load_graph
from segquant.evaluation import speed
from segquant.quant.artifacts import describe_artifact


def measure(
    artifact: str | Path, float32: str | Path, exports: str | Path, options: Speed, device: torch.device
) -> dict[str, Any]:
    """`evaluation.speed.measure`; float32 on an engine of its own is float32.onnx in `exports`.

    Graphs that take no such size, or have no float32 beside them, are unavailable.
    """
    if "engine" in describe_artifact(artifact)["recipe"]:
        reason = refused_size(options.input_size) or exports_lack(exports)
        if reason:
            return {"unavailable": reason}
    exported = Path(exports) / "float32.onnx"
    return speed.measure(artifact, float32, options, device, load, lambda engine: load_graph(exported, engine))


def main() -> None:
    parser = argparse.ArgumentParser(description=measure.__doc__)
    for name in ("artifact", "float32", "exports", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--speed", required=True, help="the speed section of params.yaml as JSON")
    parser.add_argument("--device", default="auto")
    a = parser.parse_args()
    options = build(Speed, json.loads(a.speed), "speed")
    write_json(a.output, measure(a.artifact, a.float32, a.exports, options, models.device(a.device)))


if __name__ == "__main__":
    run(main)
