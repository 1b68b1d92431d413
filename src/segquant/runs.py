"""`segquant run`: the benchmark on one model and one data set, without DVC."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from segquant import models
from segquant.base.config import Data, Graph, Method, Params, Recipe, Sensitivity, check_protocol
from segquant.base.errors import ConfigError, DataError, SegquantError
from segquant.base.files import read_json, write_json, write_text
from segquant.base.hub import locate
from segquant.data.calibration import calibration_batch, spread
from segquant.data.fingerprint import fingerprint
from segquant.data.label_map import load_label_map
from segquant.data.protocols import IMAGENET
from segquant.data.shards import Shard, open_shards, write_shards
from segquant.data.sources import open_images, open_source, rows
from segquant.deploy.build import build_graph
from segquant.deploy.finetune import build_finetuned, crop_of, points
from segquant.deploy.onnx_export import write_exports
from segquant.deploy.qdq import Score
from segquant.engines.extras import refused_protocol, refused_size
from segquant.engines.runtimes import load, load_graph
from segquant.evaluation.counts import write_counts
from segquant.evaluation.loop import evaluate
from segquant.evaluation.reference import write_reference
from segquant.evaluation.score import classes_csv, score
from segquant.evaluation.sensitivity import sensitivity, to_csv
from segquant.evaluation.shardwise import kept
from segquant.quant.build import build
from segquant.quant.recipes import plan
from segquant.report.results import from_json, to_json, with_intervals
from segquant.training.baseline import scorer
from segquant.training.data import crop_size
from segquant.training.qat import SCALE, Material, build_trained, load_teacher

log = logging.getLogger(__name__)


def run(
    params: Params,
    *,
    model: str,
    revision: str | None = None,
    sha256: str | None = None,
    data: Sequence[str],
    split: str,
    output: Path,
    methods: list[str] | None = None,
    label_maps: Sequence[str | None] = (None,),
    protocol: str | None = None,
    limit: int | None = None,
    train_data: str | None = None,
    train_split: str = "train",
) -> dict[str, dict[str, Any]]:
    """Quantize, evaluate and time each method; write artifacts, manifest.json, classes/METHOD.csv,
    confusion/METHOD.parquet and results.json to `output`.

    `model`, `revision` and `sha256` are as `hub.locate` takes them, `methods` names under quant.methods
    (None: all); `protocol` None is params.yaml's. Methods that calibrate or train do so on `train_split` of
    `train_data` (None: the first of `data`), without its labels unless they have no teacher. Each of `data` is
    scored apart; `label_maps` has one for each or one for all. Everything that can be wrong with the input is
    looked at before the first method is built. Gives {method: accuracy keys, `loss_interval`, `quantize` and `speed`},
    of several data sets {name: that}.
    """
    recipes = params.quant.choose(methods)
    protocol = check_protocol(protocol or params.protocol)
    model = str(locate(model, revision, sha256))
    device = models.device(params.eval.device)
    sets = _data_sets(params.data, data, label_maps, split, limit, output)
    baseline = models.load(model)
    maps = []
    for one in sets.values():
        try:
            maps.append(load_label_map(one.label_map, baseline.config.num_labels, one.source.classes))
        except DataError as error:
            raise DataError(f"{one.data}: {error}") from error
    for name, recipe in recipes.items():
        if isinstance(recipe, Recipe):
            plan(baseline, recipe)
        elif reason := refused_protocol(protocol) or refused_size(params.speed.input_size):
            raise ConfigError(f"{name}: {reason}")
    train = replace(params.data, source=train_data or data[0])
    images = _calibration(recipes, train, train_split, model, protocol)
    validated = next(iter(sets.values())).source, maps[0]
    points = _points(recipes, train, train_split, model, replace(params, protocol=protocol), *validated)
    material = _material(recipes, train, train_split, model, replace(params, protocol=protocol), *validated)
    partial = output / "partial"
    for one in sets.values():
        one.prepare(int(1e6 * params.data.shard_mb))
    for name, one in sets.items():
        write_reference(
            model,
            one.shards,
            one.folder / "reference",
            protocol=protocol,
            settings=params.eval,
            partial=partial / name / "reference",
        )
    float32, exports = output / "float32", output / "onnx"
    if any(isinstance(recipe, Graph) for recipe in recipes.values()):
        write_exports(model, exports)
    if "float32" not in recipes:  # speed is told against it
        build(model, Recipe("float32"), float32, device)
    results: dict[str, dict[str, Any]] = {name: {} for name in sets}
    with kept(partial):
        for method, recipe in recipes.items():
            to_calibrate_on, checkpoint = images.get(recipe.calibration_images), partial / f"{method}.pt"
            if recipe.train:
                make = build_trained if isinstance(recipe, Recipe) else build_finetuned
                built = make(model, recipe, output / method, device, to_calibrate_on, material, checkpoint)
            elif isinstance(recipe, Graph):
                built = build_graph(model, recipe, output / method, exports, to_calibrate_on, points.get(method))
            else:
                built = build(model, recipe, output / method, device, to_calibrate_on)
            for name, one in sets.items():
                result, evaluation = score(
                    output / method,
                    one.shards,
                    one.source.classes,
                    protocol=protocol,
                    reference=one.folder / "reference",
                    label_map=one.label_map,
                    settings=replace(params.eval, pictures=0),
                    partial=partial / name / method,
                    name=method,
                    load=load,
                )
                if evaluation:
                    text = classes_csv(evaluation, one.source.classes)
                    write_text(one.folder / "classes" / f"{method}.csv", text)
                    counts = one.folder / "confusion" / f"{method}.parquet"
                    write_counts(counts, evaluation.images, one.source.classes, protocol)
                results[name][method] = result if "unavailable" in built else {**result, "quantize": built}
    for name, one in sets.items():
        results[name] = to_json(with_intervals(from_json(results[name]), one.folder))
    found = results if len(sets) > 1 else next(iter(results.values()))
    write_json(output / "results.json", found)  # kept should timing fail
    for method in recipes:
        measured = [one[method] for one in results.values() if "unavailable" not in one[method]]
        if measured:
            speed = _speed(output / method, float32, exports, params)
            for result in measured:
                result["speed"] = speed
    write_json(output / "results.json", found)
    return found


def score_onnx(
    params: Params,
    *,
    onnx: str | Path,
    data: str,
    split: str,
    engine: str = "onnxruntime",
    label_map: str | None = None,
    protocol: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Score an ONNX file of any SegFormer on a data set: the accuracy keys, protocol, n_images, engine and version.

    Pixels are normalized as the file's metadata say (`preprocessing`, as `segquant export` writes it), else by
    ImageNet's mean and standard deviation. Raises ModelError for a file that is no SegFormer's.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {limit}")
    protocol = check_protocol(protocol or params.protocol)
    model = load_graph(onnx, engine)
    if model.normalization is None:
        log.warning("%s has no metadata `preprocessing`: pixels are normalized by ImageNet's mean and std", onnx)
    source = open_source(replace(params.data, source=data), split, limit)
    found = evaluate(
        model,
        rows(source),
        len(source),
        num_classes=len(source.classes),
        protocol=protocol,
        normalization=model.normalization or IMAGENET,
        settings=replace(params.eval.on(engine), batch_size=model.batch or params.eval.batch_size),
        label_map=load_label_map(label_map, model.config.num_labels, source.classes),
    )
    scores = found.scores
    return {
        "mean_iou": scores.mean_iou,
        "mean_accuracy": scores.mean_accuracy,
        "overall_accuracy": scores.overall_accuracy,
        "n_images": found.n_images,
        "protocol": protocol,
        "engine": f"{model.engine} {model.version}",
        **({"skipped": found.skipped} if found.skipped else {}),
    }


@dataclass(frozen=True)
class _DataSet:
    """One of those that a run scores on, and the folder for what is made of it."""

    data: str
    source: Any
    split: str
    label_map: str | None
    folder: Path

    @property
    def shards(self) -> list[Shard]:
        return open_shards(self.folder / "shards", self.split)

    def prepare(self, shard_bytes: int) -> None:
        manifest = write_shards({self.split: self.source}, self.folder / "shards", shard_bytes)
        if not manifest["splits"][self.split]["class_pixels"]:
            shutil.rmtree(self.folder / "shards")
            raise DataError(f"{self.data} has no labelled pixel in split '{self.split}': every one is to be ignored")
        write_json(self.folder / "manifest.json", manifest)


def _data_sets(
    params: Data, data: Sequence[str], label_maps: Sequence[str | None], split: str, limit: int | None, output: Path
) -> dict[str, _DataSet]:
    """By name, the last part of each one's path; a single one is kept in `output` itself."""
    if len(label_maps) not in (1, len(data)):
        raise ConfigError(
            f"there are {len(label_maps)} label maps for {len(data)} data sets: give one, or one for each"
        )
    names = [Path(one).resolve().name if Path(one).exists() else one.replace("/", "-") for one in data]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"two data sets are called '{twice}': rename a folder, as results are told by its name")
    maps = list(label_maps) * (len(data) if len(label_maps) == 1 else 1)
    return {
        name: _DataSet(
            one,
            open_source(replace(params, source=one), split, limit),
            split,
            label_map,
            output if len(data) == 1 else output / "data" / name,
        )
        for name, one, label_map in zip(names, data, maps)
    }


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
    from segquant.report.figure import standalone
    from segquant.report.layers import chart

    protocol = check_protocol(protocol or params.protocol)
    folder = locate(model, revision, sha256)
    source = open_source(replace(params.data, source=data), split, asked.images)
    loaded = models.load(folder).to(models.device(params.eval.device))
    found = sensitivity(
        loaded,
        list(rows(source)),
        asked,
        num_classes=len(source.classes),
        protocol=protocol,
        normalization=models.normalization(folder),
        label_map=load_label_map(label_map, loaded.config.num_labels, source.classes),
    )
    write_text(output / "sensitivity.csv", to_csv(found))
    write_text(output / "sensitivity.svg", standalone(chart(found)))
    return found


def _calibration(
    recipes: dict[str, Method], data: Data, split: str, model: str, protocol: str
) -> dict[int, torch.Tensor]:
    """The images that recipes calibrate on, by how many they want; nothing is opened where none does."""
    wanted = {recipe.calibration_images for recipe in recipes.values()} - {0}
    if not wanted:
        return {}
    try:
        source = open_images(data, split)
    except DataError as error:
        names = ", ".join(name for name, recipe in recipes.items() if recipe.calibration_images)
        raise DataError(f"{error}; it is needed to calibrate {names}: see --train-data and --train-split") from error
    normalization = models.normalization(model)
    return {n: calibration_batch((source[i] for i in spread(len(source), n)), protocol, normalization) for n in wanted}


def _material(
    recipes: dict[str, Method], data: Data, split: str, model: str, params: Params, validated: Any, label_map: Any
) -> Material | None:
    """What recipes train on, their teachers having been looked at; nothing is opened where none does.

    Training is validated on the first images of the source `validated`.
    """
    options = [recipe.train for recipe in recipes.values() if recipe.train]
    if not options:
        return None
    first = range(min(len(validated), max(one.validation_images for one in options)))
    few = Subset(validated, first)
    validate = scorer(params, few, validated.classes, models.normalization(model), label_map)
    source = open_images(data, split)
    identity = [fingerprint(data), repr(data), split]
    mapped = label_map is not None and list(source.classes) == list(validated.classes)
    material = Material(source, source.classes, identity, params.protocol, validate, mapped)
    for recipe in recipes.values():
        if recipe.train and isinstance(recipe, Graph):
            crop_of(recipe, params.protocol)
        elif recipe.train:
            crop_size(recipe.train.crop, params.protocol, SCALE)
            load_teacher(recipe.train, model, material)
    return material


def _points(
    recipes: dict[str, Method], data: Data, split: str, model: str, params: Params, validated: Any, label_map: Any
) -> dict[str, Score]:
    """Of each method that may lose so many points at most: what scores a model on its calibration images."""
    found = {}
    for name, recipe in recipes.items():
        if isinstance(recipe, Graph) and recipe.max_drop is not None:
            source = open_source(data, split)
            if list(source.classes) != list(validated.classes):
                raise DataError(
                    f"{name} has a max_drop, and {data.source} has other classes than the first --data, which the "
                    "label map is for: give --train-data with the same ones"
                )
            chosen = Subset(source, spread(len(source), recipe.calibration_images))
            found[name] = points(params, chosen, source.classes, model, label_map)
    return found


def _speed(artifact: Path, float32: Path, exports: Path, params: Params) -> dict[str, Any]:
    """Measured in a process of its own, so that memory is the artifact's alone."""
    target = artifact.parent / "speed" / f"{artifact.name}.json"
    command = [
        sys.executable,
        "-m",
        "segquant.deploy.speed",
        "--artifact",
        artifact,
        "--float32",
        float32,
        "--exports",
        exports,
        "--speed",
        json.dumps(asdict(params.speed)),
        "--device",
        params.eval.device,
        "--output",
        target,
    ]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing; was it out of memory?"]
        raise SegquantError(f"timing {artifact.name} ended with code {done.returncode}: {said[-1]}")
    return read_json(target)
