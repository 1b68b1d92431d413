"""What weights `auto` lose at several sizes, beside methods of one width, on a model and a data set.

    python benchmarks/budgets.py --model DIR --data DIR --split val --protocol fixed-384x512-v1 --output out/ \\
        [--label-map FILE] [--budgets 1.15,1.3] [--methods int2,int4] [--sets 3] [--train]

Each method is made once for each of several disjoint sets of calibration images, all spread evenly over the train
split. `results.csv` has a line for each: points of mIoU lost on `split`, the mean divergence of the predictions from
float32's in nats a pixel, and the seconds of its build. A run with the same options goes on where another one
stopped; other --budgets and --methods, and --train, add lines. `front.svg` shows the means over the sets, from the
lowest to the highest.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import engines
import torch
from torch import nn

from segquant import models
from segquant.base import config
from segquant.base.config import Auto, Calibration, Method, Params, Qat, Recipe
from segquant.base.entry import run
from segquant.base.errors import ConfigError, DataError
from segquant.base.files import csv_text, digest, read_json, write_json, write_text
from segquant.base.hub import digests
from segquant.data.calibration import calibration_batch
from segquant.data.label_map import class_names, match_classes
from segquant.data.preprocessing import read_preprocessing
from segquant.data.sources import open_source
from segquant.evaluation.loop import evaluate
from segquant.evaluation.predict import forward
from segquant.methods import Job, check, kind
from segquant.quant.artifacts import load_artifact
from segquant.quant.recipes import unavailable
from segquant.report.figure import plt, standalone, svg
from segquant.training.losses import distillation
from segquant.training.split import TrainSplit, split_of_source

CPU = torch.device("cpu")
IMAGES = 32  # of a set
BUDGETS = "1.15,1.32,1.45,1.75,2.2,3"
WIDTHS, TRAINED = "int2,int3,int4,int8", "int2,int3,int4"
TRAIN = Qat(**engines.TRAIN)
COLUMNS = ("set", "method", "megabytes", "points_lost", "divergence", "seconds")


class Data(NamedTuple):
    """What methods are made of and scored on."""

    params: Params
    baseline: Path
    train: TrainSplit
    score: Callable[[nn.Module], float]  # points of mIoU
    inputs: torch.Tensor  # (N, 3, H, W) of the scored images


def opened(a: argparse.Namespace) -> Data:
    params = replace(config.load(), protocol=config.check_protocol(a.protocol))
    params = replace(params, data=replace(params.data, source=a.data, limit=a.limit))
    scored, preprocessing = open_source(params.data, a.split, a.limit), read_preprocessing(a.model)
    rows = [scored[i] for i in range(len(scored))]
    to_data = match_classes(class_names(models.load(a.model).config), scored.classes, a.label_map)
    options = {"num_classes": len(scored.classes), "protocol": a.protocol, "preprocessing": preprocessing}

    def score(model: nn.Module) -> float:
        return 100 * evaluate(model, rows, len(rows), label_map=to_data, **options).scores.mean_iou

    train = split_of_source(params, a.model, params.data, a.train_split, scored, a.label_map)
    return Data(params, Path(a.model), train, score, calibration_batch(rows, a.protocol, preprocessing))


def recipes(a: argparse.Namespace, methods: Mapping[str, Method]) -> dict[str, Method]:
    """The methods to compare, by name. Raises ConfigError for one that there is not, or that cannot be compared."""
    known = {name: recipe for name, recipe in methods.items() if isinstance(recipe, Recipe) and not recipe.train}
    if "int4" in known:
        known.setdefault("int3", replace(known["int4"], weights="int3"))
    suffix, train = ("_qat", TRAIN) if a.train else ("", None)
    chosen = {}
    for name in filter(None, a.methods.split(",")):
        if name not in known:
            raise ConfigError(f"--methods '{name}' is unknown: choose from {', '.join(known)}")
        if reason := unavailable(known[name], CPU):
            raise ConfigError(f"--methods '{name}': {reason}")
        calibration = known[name].calibration and Calibration(IMAGES)
        chosen[f"{name}{suffix}"] = replace(known[name], calibration=calibration, train=train)
    for budget in filter(None, a.budgets.split(",")):
        if not re.fullmatch(r"[0-9]+\.?[0-9]*", budget):
            raise ConfigError(f"--budgets '{budget}' is no number of megabytes: give some, such as {BUDGETS}")
        recipe = Auto(weights="auto", megabytes=float(budget), calibration=Calibration(IMAGES), train=train)
        chosen[f"auto{suffix}_{budget}"] = recipe
    return chosen


def images(data: Data, number: int, sets: int) -> torch.Tensor:
    """The calibration images of set `number` of `sets`. Raises DataError where there are not enough for all."""
    rows = data.train.rows
    if len(rows) < sets * IMAGES:
        raise DataError(f"{sets} sets take {sets * IMAGES} train images, and there are {len(rows)}: give fewer --sets")
    indices = [(sets * i + number) * len(rows) // (sets * IMAGES) for i in range(IMAGES)]
    return calibration_batch((rows[i] for i in indices), data.params.protocol, read_preprocessing(data.baseline))


def measured(data: Data, recipe: Method, calibration: torch.Tensor, exact: nn.Module, best: float) -> list[str]:
    """The columns of a method from `megabytes` on; `best` are the points of the float model `exact`."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(data.baseline, recipe, Path(folder) / "artifact", CPU)
        if recipe.calibration_images:
            job = replace(job, images=calibration)
        if recipe.train:
            material = data.train.material(recipe.train.validation_images, labelled=False)
            job = replace(job, material=material, checkpoint=Path(folder) / "training.pt")
        seconds = kind(recipe).build(job)["seconds"]
        artifact = load_artifact(job.folder)
        lost, moved = best - data.score(artifact.model), divergence(exact, artifact.model, data.inputs)
        return [f"{artifact.size_bytes / 1e6:.3f}", f"{lost:.3f}", f"{moved:.4g}", f"{seconds:.0f}"]


def divergence(exact: nn.Module, model: nn.Module, inputs: torch.Tensor) -> float:
    """KL(exact || model) of the predictions, the mean over the places of the logits."""
    return mean(distillation(forward(model, image), forward(exact, image)).item() for image in inputs.split(1))


def front(rows: list[dict[str, str]]) -> str:
    """SVG text: the points lost by size, the mean over the sets from the lowest to the highest."""
    figure, axes = plt.subplots(figsize=(7, 4.4), layout="constrained")
    sizes, lost, lines = defaultdict(list), defaultdict(list), defaultdict(list)
    for row in rows:
        sizes[row["method"]].append(float(row["megabytes"]))
        lost[row["method"]].append(float(row["points_lost"]))
    for name in sorted(sizes, key=lambda name: mean(sizes[name])):
        lines[name.rsplit("_", 1)[0] if name.startswith("auto") else name].append(name)
    for label, names in lines.items():
        means = [mean(lost[name]) for name in names]
        ends = [[mean(lost[name]) - min(lost[name]), max(lost[name]) - mean(lost[name])] for name in names]
        axes.errorbar([mean(sizes[name]) for name in names], means, [*zip(*ends, strict=True)], fmt="o-", label=label)
    axes.set(xlabel="size of the weights' file, MB", ylabel="points of mean IoU lost", xscale="log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}")
    axes.axhline(0, lw=0.8, color="0.6")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return svg(figure)


def earlier(a: argparse.Namespace, path: Path, data: Data, methods: Mapping[str, Method]) -> list[dict[str, str]]:
    """The rows that are there already. Raises ConfigError where other options, or other recipes, made them."""
    kept = {key: value for key, value in vars(a).items() if key not in ("output", "budgets", "methods", "train")}
    kept |= {"weights": digests(Path(a.model)), "data_section": digest(asdict(data.params.data)), "images": IMAGES}
    made = {name: digest(asdict(recipe)) for name, recipe in methods.items()}
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.is_file() else []
    noted = path.with_name("options.json")
    if path.is_file():
        before = read_json(noted)
        known = before.pop("recipes", {})
        if before != json.loads(json.dumps(kept)):
            raise ConfigError(f"{path.parent} holds results of other options: give another --output")
        there = {row["method"] for row in rows}
        if changed := sorted(name for name in there & made.keys() if known.get(name) != made[name]):
            raise ConfigError(f"{path.parent} holds {', '.join(changed)} of another recipe: give another --output")
        made |= {name: known.get(name) for name in there}
    write_json(noted, {**kept, "recipes": made})
    return rows


def main() -> None:
    parser = engines.scored_options(__doc__)
    parser.add_argument("--limit", type=int, help="images of each split (default: all)")
    parser.add_argument("--budgets", default=BUDGETS, help=f"megabytes of `auto` (default: {BUDGETS})")
    default = f"{WIDTHS}; with --train: {TRAINED}"
    parser.add_argument("--methods", help=f"others, of params.yaml without training, and int3 (default: {default})")
    parser.add_argument("--sets", type=int, default=1)
    parser.add_argument("--train", action="store_true", help=f"train them all: {TRAIN.steps} steps")
    a = parser.parse_args()
    if a.methods is None:
        a.methods = TRAINED if a.train else WIDTHS
    if a.sets < 1:
        raise ConfigError(f"--sets must be at least 1, not {a.sets}")
    data, path = opened(a), Path(a.output) / "results.csv"
    exact, methods = models.load(a.model), recipes(a, data.params.quant.methods)
    for name, recipe in methods.items():
        check(name, exact, recipe, data.params)
    calibrations = [images(data, number, a.sets) for number in range(a.sets)]
    rows = earlier(a, path, data, methods)
    best = data.score(exact)
    print(f"float32: {best:.2f} % on {len(data.inputs)} images", flush=True)
    for number, calibration in enumerate(calibrations):
        for name, recipe in methods.items():
            if not any((row["set"], row["method"]) == (str(number), name) for row in rows):
                values = measured(data, recipe, calibration, exact, best)
                rows.append(dict(zip(COLUMNS, (str(number), name, *values), strict=True)))
                write_text(path, csv_text((row.values() for row in rows), COLUMNS))
                print(*rows[-1].values(), flush=True)
    write_text(path.with_name("front.svg"), standalone(front(rows)))


if __name__ == "__main__":
    run(main)
