"""`segquant run`: the benchmark on one model and one data set, without DVC."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from segquant import models
from segquant.config import Params, Recipe, check_protocol
from segquant.data.images import IGNORE
from segquant.data.label_map import load_label_map
from segquant.data.shards import LabelCounts, make_manifest
from segquant.data.sources import open_source, rows
from segquant.errors import DataError, SegquantError
from segquant.evaluation.reference import write_reference
from segquant.evaluation.score import score
from segquant.files import read_json, write_json
from segquant.quant.build import build


def run(
    params: Params,
    *,
    model: str,
    data: str,
    split: str,
    output: Path,
    methods: list[str] | None = None,
    label_map: str | None = None,
    protocol: str | None = None,
    limit: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Quantize, evaluate and time each method; write artifacts, manifest.json and results.json to `output`.

    `methods` are names under quant.methods (None: all); `protocol` None is params.yaml's. Everything that
    can be wrong with the input is looked at before the first method is built. Gives {method: accuracy
    keys and `speed`}.
    """
    recipes = params.quant.choose(methods)
    protocol = check_protocol(protocol or params.protocol)
    device = models.device(params.eval.device)
    source = open_source(data, split, limit)
    load_label_map(label_map, models.load(model).config.num_labels, source.classes)
    counts = LabelCounts()
    for row in rows(source):
        counts.add(row)
    if not counts.pixels[:IGNORE].any():
        raise DataError(f"{data} has no labelled pixel in split '{split}': every one is to be ignored")
    write_json(output / "manifest.json", make_manifest(source.classes, {split: counts.summary()}))

    reference = output / "reference.parquet"
    batch_size = params.eval.batch_size
    write_reference(
        model, rows(source), len(source), reference, protocol=protocol, batch_size=batch_size, device=device
    )
    float32 = output / "float32"
    if "float32" not in recipes:  # speed is told against it
        build(model, Recipe("float32"), float32, device)
    results = {}
    for method, recipe in recipes.items():
        build(model, recipe, output / method, device)
        results[method], _ = score(
            output / method,
            rows(source),
            len(source),
            list(source.classes),
            protocol=protocol,
            reference=reference,
            label_map=label_map,
            device=device,
            batch_size=batch_size,
            pictures=0,
            name=method,
        )
    write_json(output / "results.json", results)  # kept should timing fail
    for method, result in results.items():
        if "unavailable" not in result:
            result["speed"] = _speed(output / method, float32, params)
    write_json(output / "results.json", results)
    return results


def _speed(artifact: Path, float32: Path, params: Params) -> dict[str, Any]:
    """Measured in a process of its own, so that memory is the artifact's alone."""
    target = artifact.parent / "speed" / f"{artifact.name}.json"
    command = [
        sys.executable, "-m", "segquant.evaluation.speed", "--artifact", artifact, "--float32", float32,
        "--speed", json.dumps(asdict(params.speed)), "--device", params.eval.device, "--output", target,
    ]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing; was it out of memory?"]
        raise SegquantError(f"timing {artifact.name} ended with code {done.returncode}: {said[-1]}")
    return read_json(target)
