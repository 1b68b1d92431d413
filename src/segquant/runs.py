"""`segquant run`: the benchmark on one model and one data set, without DVC."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from segquant import models
from segquant.config import Params, Recipe, Sensitivity, check_protocol
from segquant.data.calibration import calibration_batch, spread
from segquant.data.label_map import load_label_map
from segquant.data.shards import open_shards, write_shards
from segquant.data.sources import open_source, rows
from segquant.errors import DataError, SegquantError
from segquant.evaluation.reference import write_reference
from segquant.evaluation.score import score
from segquant.evaluation.sensitivity import sensitivity, to_csv
from segquant.evaluation.shardwise import kept
from segquant.files import read_json, write_json, write_text
from segquant.hub import locate
from segquant.quant.build import build
from segquant.quant.methods import plan


def run(
    params: Params,
    *,
    model: str,
    revision: str | None = None,
    sha256: str | None = None,
    data: str,
    split: str,
    output: Path,
    methods: list[str] | None = None,
    label_map: str | None = None,
    protocol: str | None = None,
    limit: int | None = None,
    train_data: str | None = None,
    train_split: str = "train",
) -> dict[str, dict[str, Any]]:
    """Quantize, evaluate and time each method; write artifacts, manifest.json and results.json to `output`.

    `model`, `revision` and `sha256` are as `hub.locate` takes them, `methods` names under quant.methods
    (None: all); `protocol` None is params.yaml's. Methods that calibrate do so on `train_split` of
    `train_data` (None: `data`), without its labels. Everything that can be wrong with the input is looked at
    before the first method is built. Gives {method: accuracy keys, `quantize` and `speed`}.
    """
    recipes = params.quant.choose(methods)
    protocol = check_protocol(protocol or params.protocol)
    model = str(locate(model, revision, sha256))
    device = models.device(params.eval.device)
    source = open_source(data, split, limit)
    baseline = models.load(model)
    load_label_map(label_map, baseline.config.num_labels, source.classes)
    for recipe in recipes.values():
        plan(baseline, recipe)
    images = _calibration(recipes, train_data or data, train_split, model, protocol)
    manifest = write_shards({split: source}, output / "shards")
    if not manifest["splits"][split]["class_pixels"]:
        shutil.rmtree(output / "shards")
        raise DataError(f"{data} has no labelled pixel in split '{split}': every one is to be ignored")
    write_json(output / "manifest.json", manifest)

    shards, partial = open_shards(output / "shards", split), output / "partial"
    write_reference(
        model, shards, output / "reference", protocol=protocol, settings=params.eval, partial=partial / "reference"
    )
    float32 = output / "float32"
    if "float32" not in recipes:  # speed is told against it
        build(model, Recipe("float32"), float32, device)
    results = {}
    with kept(partial):
        for method, recipe in recipes.items():
            built = build(model, recipe, output / method, device, images.get(recipe.calibration_images))
            results[method], _ = score(
                output / method, shards, manifest["classes"], protocol=protocol, reference=output / "reference",
                label_map=label_map, settings=replace(params.eval, pictures=0), partial=partial / method, name=method,
            )  # fmt: skip
            if "unavailable" not in built:
                results[method]["quantize"] = built
    write_json(output / "results.json", results)  # kept should timing fail
    for method, result in results.items():
        if "unavailable" not in result:
            result["speed"] = _speed(output / method, float32, params)
    write_json(output / "results.json", results)
    return results


def layers(
    params: Params,
    asked: Sensitivity,
    *,
    model: str,
    revision: str | None = None,
    sha256: str | None = None,
    data: str,
    split: str,
    output: Path,
    label_map: str | None = None,
    protocol: str | None = None,
) -> list[dict[str, Any]]:
    """Quantize each layer alone, score it, and write sensitivity.csv and sensitivity.svg to `output`."""
    from segquant.report import plots

    protocol = check_protocol(protocol or params.protocol)
    folder = locate(model, revision, sha256)
    source = open_source(data, split, asked.images)
    loaded = models.load(folder).to(models.device(params.eval.device))
    found = sensitivity(
        loaded, list(rows(source)), asked, num_classes=len(source.classes), protocol=protocol,
        normalization=models.normalization(folder),
        label_map=load_label_map(label_map, loaded.config.num_labels, source.classes),
    )  # fmt: skip
    write_text(output / "sensitivity.csv", to_csv(found))
    write_text(output / "sensitivity.svg", plots.sensitivity(found))
    return found


def _calibration(
    recipes: dict[str, Recipe], data: str, split: str, model: str, protocol: str
) -> dict[int, torch.Tensor]:
    """The images that recipes calibrate on, by how many they want; nothing is opened where none does."""
    wanted = {recipe.calibration_images for recipe in recipes.values()} - {0}
    if not wanted:
        return {}
    try:
        source = open_source(data, split)
    except DataError as error:
        names = ", ".join(name for name, recipe in recipes.items() if recipe.calibration_images)
        raise DataError(f"{error}; {names} calibrate on it: give --train-data and --train-split") from error
    normalization = models.normalization(model)
    return {n: calibration_batch((source[i] for i in spread(len(source), n)), protocol, normalization) for n in wanted}


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
