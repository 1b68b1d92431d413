"""`segquant run`: every method's lane on a user's model and data, without DVC."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from segquant import lanes, models
from segquant.base import output as output_folder
from segquant.base.config import BASELINE, Method, Params, check_protocol
from segquant.base.entry import logged
from segquant.base.errors import ModelError
from segquant.base.failures import missing
from segquant.base.files import write_json
from segquant.base.hub import digests, locate
from segquant.data.label_map import class_names
from segquant.deploy.onnx_export import write_exports
from segquant.methods import kind
from segquant.report.results import failures, from_json, to_json, with_intervals
from segquant.training.split import TrainSplit
from segquant.workspace import DataSet, Workspace, earlier, forget, open_sets, prepare, targets


def run(
    params: Params,
    *,
    model: str,
    revision: str | None = None,
    sha256: str | None = None,
    data: Sequence[str],
    split: str,
    output: Path,
    force: bool = False,
    command: str = "run",
    methods: list[str] | None = None,
    label_maps: Sequence[str | None] = (None,),
    protocol: str | None = None,
    limit: int | None = None,
    train_data: str | None = None,
    train_split: str = "train",
) -> dict[str, dict[str, Any]]:
    """Quantize, evaluate and time each method in the folder `output` (`workspace`); write results.json and run.log.

    The folder is new, or `command` made it, unless `force` (base/output.py).
    `model`, `revision` and `sha256` are as `hub.locate` takes them, `methods` names of methods (None: all);
    `protocol` None is params.yaml's. Methods calibrate and train on `train_split` of `train_data` (None: the first of
    `data`), without its labels unless they have no teacher. Each of `data` is scored apart; `label_maps` has one for
    each or one for all. All input is checked before the first method is built; of one that fails then, `failed` gives
    the reason. Gives {method: accuracy keys, `loss_interval`, `quantize` and `speed`}, of several sets {name: that}.
    """
    output_folder.check(output, command, [model, *data, *filter(None, [train_data, *label_maps])], force)
    recipes = params.quant.choose(methods)
    built = params.quant.needed(recipes)
    params = replace(params, protocol=check_protocol(protocol or params.protocol))
    place, baseline = Workspace(output), locate(model, revision, sha256)
    loaded = models.load(baseline)  # before the data, which may have to be downloaded
    sets = open_sets(params, data, label_maps, split, limit, output, class_names(loaded.config))
    first, learns = next(iter(sets.values())), train_data or data[0]
    train = lanes.train_split(params, built, baseline, learns, train_split, first.source, first.label_map)
    lanes.check(params, loaded, built, lambda: train)
    del loaded
    read = digests(baseline)
    with output_folder.claimed(output, command, force) as claim:
        claim.check(*targets([*sets.values()], recipes, built, place), *earlier(output, claim))
        prepare([*sets.values()], output, int(1e6 * params.data.shard_mb), train.learned if train else set(), claim)
        claim.note(output / "run.log", *map(place.speed, recipes))  # which base/files.py does not write here
        with logged(output / "run.log"):
            results = _scores(params, recipes, built, baseline, place, sets, train)
            if digests(baseline) != read:  # each method reads it again
                forget(output, claim)
                raise ModelError(f"model '{model}' changed while it was read: run it again")
            return _with_speeds(params, recipes, results, place, sets)


def _scores(
    params: Params,
    recipes: Mapping[str, Method],
    built: Mapping[str, Method],
    baseline: Path,
    place: Workspace,
    sets: Mapping[str, DataSet],
    train: TrainSplit | None,
) -> dict[str, dict[str, Any]]:
    """{data set: {method of `recipes`: its results}} but for speeds; makes the artifacts of all that are `built`."""
    for name, data_set in sets.items():
        data_set.refer(baseline, params, place.partial / name)
    if any(kind(recipe).exports for recipe in recipes.values()):
        write_exports(baseline, place.exports)
    results: dict[str, dict[str, Any]] = {name: dict.fromkeys(recipes) for name in sets}
    for method in built:
        artifact = place.artifact(method)
        paths = {"exports": place.exports, "checkpoint": place.partial / f"{method}.pt"}
        times = lanes.quantize(params, method, baseline, artifact, lambda: train, **paths)
        for name, data_set in sets.items() if method in recipes else ():
            metrics = data_set.evaluate(method, artifact, params, place.partial / name)
            results[name][method] = metrics if missing(metrics) else {**metrics, "quantize": times}
    return results


def _with_speeds(
    params: Params, recipes: Mapping[str, Method], results: dict, place: Workspace, sets: Mapping[str, DataSet]
) -> dict[str, dict[str, Any]]:
    """`results` of `_scores` with intervals and speeds, as `run` gives them and results.json holds them."""
    results = {name: to_json(with_intervals(from_json(results[name]), sets[name].folder)) for name in sets}
    whole = results if len(sets) > 1 else results[next(iter(sets))]
    write_json(place.root / "results.json", whole)  # kept should timing be interrupted
    for method in recipes:
        scored = [by_method[method] for by_method in results.values() if not missing(by_method[method])]
        if scored:
            paths = place.artifact(method), place.artifact(BASELINE), place.exports, place.speed(method)
            speed = lanes.benchmark(*paths, params)
            for metrics in scored:
                metrics["speed"] = speed
    write_json(place.root / "results.json", whole)
    if not any(failures(from_json(by_method)) for by_method in results.values()):
        shutil.rmtree(place.partial, ignore_errors=True)  # else the next run goes on from what is there
    return whole
