"""One method's lane. The pipeline's stages and `segquant run` call the same functions.

Evaluation is `evaluation.score`: it stands apart, so that its stage depends neither on training nor on exporters.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from segquant import methods, models
from segquant.base.config import BASELINE, Method, Params
from segquant.base.errors import ConfigError, DataError, SegquantError, UnavailableError
from segquant.base.failures import failure, missing
from segquant.base.files import read_json
from segquant.base.ranks import ranks
from segquant.methods import Job, kind
from segquant.quant.artifacts import save_missing
from segquant.training.split import TrainSplit, split_of_source

if TYPE_CHECKING:
    from segquant.training.material import Recording

log = logging.getLogger(__name__)


def train_split(
    params: Params,
    recipes: Mapping[str, Method],
    baseline: Path,
    data: str,
    split: str,
    scored: Any,
    label_map: str | None,
) -> TrainSplit | None:
    """What recipes calibrate and train on: `split` of `data`; None where none does. `scored` and `label_map` are as
    `split_of_source` takes them, whose DataError then names the recipes."""
    fitted = [name for name, recipe in recipes.items() if recipe.calibration_images or recipe.train]
    if not fitted:
        return None
    try:
        return split_of_source(params, baseline, replace(params.data, source=data), split, scored, label_map)
    except DataError as error:
        needed = f"it is needed to calibrate {', '.join(fitted)}: see --train-data and --train-split"
        raise DataError(f"{error}; {needed}") from error


def check(params: Params, model: nn.Module, recipes: Mapping[str, Method], split: Callable[[], TrainSplit]) -> None:
    """Hold every recipe against the model and open what it calibrates and trains with, so that an error stops a run
    before any work. `split` is called where a recipe needs it. Raises DataError, ConfigError and ModelError.
    """
    for name, recipe in recipes.items():
        methods.check(name, model, recipe, params)
    for name, recipe in recipes.items():
        count = recipe.calibration_images
        if count:
            split().images(count)
        try:
            kind(recipe).points(recipe, split)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        if recipe.train:
            material = split().material(recipe.train.validation_images, _labels(recipe))
            kind(recipe).check_training(recipe, split().baseline, material)


def _labels(recipe: Method) -> bool:
    """Whether its training learns from labels; fine-tuned graphs always have a teacher."""
    return getattr(recipe.train, "teacher", None) == "none"


def quantize(
    params: Params,
    method: str,
    baseline: str | Path,
    folder: str | Path,
    split: Callable[[], TrainSplit],
    *,
    exports: str | Path,
    checkpoint: Path,
    trained: str | Path | None = None,
    recording: Recording = nullcontext,
    may_fail: bool = True,
) -> dict[str, Any]:
    """Make the artifact `folder` of a method; gives its times, nothing on other ranks than the first.

    `exports` is the folder of `export_onnx`; `trained` is an artifact that is taken where the very same training made
    it; a killed training continues from `checkpoint`; `recording` gives a training its record. Raises DataError and
    ModelError for what a method is built from, ConfigError for a recipe that does not fit. Any other failure of a build
    leaves an artifact that says why, and the result is {"failed": the reason}; unless it `may_fail`, and for float32,
    it raises too (see `failures.failure`). What this machine cannot run leaves such an artifact too, or raises
    UnavailableError unless it `may_fail`.
    """
    recipe, split = params.quant.choose([method])[method], cache(split)
    device = models.device(params.eval.device)
    reason = kind(recipe).unavailable(recipe, device) or kind(recipe).refused(params.protocol, None)
    if reason:
        if not may_fail:
            raise UnavailableError(f"{method} cannot be made here: {reason}")
        if not ranks()[0]:
            save_missing(recipe, {"unavailable": reason}, folder)
        return {"unavailable": reason}
    if not recipe.train and ranks()[0]:
        return {}
    options = {"exports": Path(exports), "methods": params.quant.methods, "recording": recording}
    job = Job(Path(baseline), recipe, Path(folder), device, **options)
    if recipe.train:
        if trained and (times := _take(trained, job, split())):
            return times
        material = split().material(recipe.train.validation_images, _labels(recipe))
        material = material._replace(identity=split().identity_of(recipe))
        job = replace(job, material=material, checkpoint=checkpoint)
    if count := recipe.calibration_images:
        job = replace(job, images=split().images(count), points=kind(recipe).points(recipe, split))
    try:
        times = kind(recipe).build(job)
    except (ConfigError, DataError):  # the user's, and not the method's
        raise
    except Exception as error:  # torchao, exporters and engines raise many types
        if not may_fail:
            raise
        times = failure(method, error, needed=method == BASELINE)
        save_missing(recipe, times, folder)
        return times
    if not may_fail and (reasons := missing(times)):
        raise UnavailableError(f"{method} cannot be made here: {', '.join(reasons.values())}")
    if not ranks()[0]:
        checkpoint.unlink(missing_ok=True)
    return times


def _take(trained: str | Path, job: Job, split: TrainSplit) -> dict[str, Any] | None:
    from segquant.engines.load import load
    from segquant.quant.build import take

    name = kind(job.recipe).training_name(job, split.identity_of(job.recipe), split.params.protocol)
    return take(trained, job.folder, name, load)


def benchmark(artifact: Path, float32: Path, exports: Path, target: Path, params: Params) -> dict[str, Any]:
    """Measure an artifact's speed in a process of its own, so that memory is the artifact's alone; write `target`.

    Gives {"failed": the reason}, and writes nothing, where the process fails.
    """
    options = {
        "artifact": artifact,
        "float32": float32,
        "exports": exports,
        "speed": json.dumps(asdict(params.speed)),
        "device": params.eval.device,
        "output": target,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "segquant.evaluation.speed", "--attached", *arguments]
    reader, writer = os.pipe()  # if this process is killed the pipe closes, and the other one ends
    try:
        done = subprocess.run(command, stdin=reader, capture_output=True, text=True, check=False)
    finally:
        os.close(reader)
        os.close(writer)
    if done.returncode:
        log.debug("timing %s:\n%s", artifact.name, done.stderr)
        *_, last = ["", *done.stderr.strip().splitlines()]
        known = last.startswith("error: ")  # a process that is killed has only logged
        reason = last.removeprefix("error: ") if known else "it gave no reason; was it out of memory?"
        return failure(artifact.name, SegquantError(f"timing ended with code {done.returncode}: {reason}"))
    return read_json(target)
