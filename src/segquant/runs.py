"""`segquant run`: every method's lane on a user's model and data, without DVC."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segquant import lanes, models
from segquant.base.config import Params, Recipe, check_protocol
from segquant.base.errors import DataError
from segquant.base.files import write_json
from segquant.base.hub import locate
from segquant.data.label_map import class_names
from segquant.deploy.onnx_export import write_exports
from segquant.evaluation.reference import write_reference
from segquant.evaluation.score import score, write_scores
from segquant.evaluation.shardwise import kept
from segquant.methods import kind
from segquant.quant.build import build
from segquant.report.results import from_json, to_json, with_intervals
from segquant.training.split import split_of_source
from segquant.workspace import DataSet, Workspace, open_sets


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
    """Quantize, evaluate and time each method; write artifacts/METHOD/, manifest.json, accuracy/METHOD.json,
    classes/METHOD.csv, confusion/METHOD.parquet and results.json to `output`.

    `model`, `revision` and `sha256` are as `hub.locate` takes them, `methods` names under quant.methods (None: all);
    `protocol` None is params.yaml's. Methods calibrate and train on `train_split` of `train_data` (None: the first of
    `data`), without its labels unless they have no teacher. Each of `data` is scored apart; `label_maps` has one for
    each or one for all. All input is checked before the first method is built. Gives {method: accuracy keys,
    `loss_interval`, `quantize` and `speed`}, of several data sets {name: that}.
    """
    recipes = params.quant.choose(methods)
    params = replace(params, protocol=check_protocol(protocol or params.protocol))
    place, baseline = Workspace(output), locate(model, revision, sha256)
    loaded = models.load(baseline)  # before the data, which may have to be downloaded
    sets = open_sets(params.data, data, label_maps, split, limit, output, params.eval.on_error)
    for data_set in sets.values():
        data_set.check(class_names(loaded.config))
    train, fitted = None, [name for name, recipe in recipes.items() if recipe.calibration_images or recipe.train]
    if fitted:
        scored, train_source = next(iter(sets.values())), replace(params.data, source=train_data or data[0])
        try:
            train = split_of_source(params, baseline, train_source, train_split, scored.source, scored.label_map)
        except DataError as error:
            needed = f"it is needed to calibrate {', '.join(fitted)}: see --train-data and --train-split"
            raise DataError(f"{error}; {needed}") from error
    lanes.check(params, loaded, recipes, train)
    for name, data_set in sets.items():
        data_set.prepare(int(1e6 * params.data.shard_mb), train.learned if train else frozenset())
        write_reference(
            baseline,
            data_set.shards,
            data_set.reference,
            protocol=params.protocol,
            settings=params.eval,
            partial=place.partial / name / "reference",
        )
    if any(kind(recipe).exports for recipe in recipes.values()):
        write_exports(baseline, place.exports)
    if "float32" not in recipes:  # speed is measured against it
        build(baseline, Recipe("float32"), place.artifact("float32"), models.device(params.eval.device))
    results: dict[str, dict[str, Any]] = {name: {} for name in sets}
    with kept(place.partial):
        for method in recipes:
            artifact, checkpoint = place.artifact(method), place.partial / f"{method}.pt"
            times = lanes.quantize(
                params, method, baseline, artifact, lambda: train, exports=place.exports, checkpoint=checkpoint
            )
            for name, data_set in sets.items():
                metrics = _evaluate(params, method, place, name, data_set)
                results[name][method] = metrics if "unavailable" in times else {**metrics, "quantize": times}
    for name, data_set in sets.items():
        results[name] = to_json(with_intervals(from_json(results[name]), data_set.folder))
    whole = results if len(sets) > 1 else results[next(iter(sets))]
    write_json(output / "results.json", whole)  # kept should timing fail
    for method in recipes:
        scored = [by_method[method] for by_method in results.values() if "unavailable" not in by_method[method]]
        if scored:
            target = place.speed(method)
            speed = lanes.benchmark(place.artifact(method), place.artifact("float32"), place.exports, target, params)
            for metrics in scored:
                metrics["speed"] = speed
    write_json(output / "results.json", whole)
    return whole


def _evaluate(params: Params, method: str, place: Workspace, name: str, data_set: DataSet) -> dict[str, Any]:
    metrics, evaluation = score(
        place.artifact(method),
        data_set.shards,
        data_set.source.classes,
        protocol=params.protocol,
        reference=data_set.reference,
        label_map=data_set.label_map,
        settings=replace(params.eval, pictures=0),
        partial=place.partial / name / method,
    )
    if evaluation:
        write_scores(metrics, evaluation, data_set.source.classes, **data_set.outputs(method))
    return metrics
