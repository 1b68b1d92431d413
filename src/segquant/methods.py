"""Every kind of method in one table: how it is described, when it cannot run, what it refuses, how it is built.

A new kind is a class of recipe in `config`, the functions that build it, and a line of KINDS. Builders are imported
where they are used, as a lane starts a process for one method and most need neither training nor graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from segquant.base.config import Auto, Graph, Method, Packed, Params, Recipe
from segquant.base.errors import ConfigError
from segquant.deploy import describe as graphs
from segquant.engines import extras
from segquant.quant import candidates, recipes
from segquant.quant.describe import describe
from segquant.quant.points import Points

if TYPE_CHECKING:
    from segquant.training.material import Material, Recording
    from segquant.training.split import TrainSplit


VERIFIED = 128  # train images that a budget in points is verified on


@dataclass(frozen=True)
class Job:
    """What a method is built from, and the folder for its artifact.

    `images` float32 (N, 3, H, W) are the calibration inputs, `exports` the folder of `export_onnx`, `methods` the
    recipes of the artifacts beside `folder`, from which a packed method takes its codes; `points` score models on
    train images, `material` is what it trains on, `checkpoint` what a killed training goes on
    from.
    """

    baseline: Path
    recipe: Method
    folder: Path
    device: torch.device
    images: torch.Tensor | None = None
    exports: Path | None = None
    methods: Mapping[str, Method] = field(default_factory=dict)
    points: Points | None = None
    material: Material | None = None
    checkpoint: Path | None = None
    recording: Recording = nullcontext


class Kind(NamedTuple):
    """What there is to know about one class of recipe.

    `unavailable(recipe, device)` and `refused(protocol, input_size)` give a reason or None; `check(model, recipe)`
    raises ConfigError for a recipe that does not fit the model; `check_training(recipe, baseline, material)` raises
    as the teachers' loading does; `training_name(job, identity, protocol)` names all that a training on these
    rows depends on; `build(job)`
    gives {"seconds", "calibration_images"} or {"unavailable": reason}. `points(recipe, split)` are those that its build
    scores models by on a TrainSplit, None for most; `exports` says whether it and its timing need what `export_onnx`
    writes.
    """

    describe: Callable[[Any], str]
    unavailable: Callable[[Any, torch.device], str | None]
    refused: Callable[[str, Sequence[int] | None], str | None]
    check: Callable[[nn.Module, Any], Any]
    check_training: Callable[[Any, Path, Material], None]
    training_name: Callable[[Job, Any, str], str]
    build: Callable[[Job], dict[str, Any]]
    points: Callable[[Any, Callable[[], TrainSplit]], Points | None]
    exports: bool


def kind(recipe: Method) -> Kind:
    """The line of the table that a recipe belongs to."""
    return KINDS[type(recipe)]


def check(name: str, model: nn.Module, recipe: Method, params: Params) -> None:
    """Raise ConfigError for a method that cannot be built of `model`, or not be timed, as `params` say."""
    if reason := kind(recipe).refused(params.protocol, params.speed.input_size):
        raise ConfigError(f"{name}: {reason}")
    try:
        kind(recipe).check(model, recipe)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def _check_qat(recipe: Recipe | Auto, baseline: Path, material: Material) -> None:
    from segquant.training.data import crop_size
    from segquant.training.material import SCALE
    from segquant.training.qat import load_teacher

    crop_size(recipe.train.crop, material.protocol, SCALE)
    load_teacher(recipe.train, baseline, material)


def _qat_name(job: Job, identity: Any, protocol: str) -> str:
    from segquant.training.qat import run_name

    return run_name(job.recipe, job.baseline, identity, protocol)


def _build_recipe(job: Job) -> dict[str, Any]:
    if job.recipe.train:
        from segquant.training.qat import build_trained

        inputs = (job.baseline, job.recipe, job.folder, job.device, job.images)
        return build_trained(*inputs, job.material, job.checkpoint, job.recording, job.points)
    from segquant.quant.build import build

    return build(job.baseline, job.recipe, job.folder, job.device, job.images, points=job.points)


def _refused_by_graphs(protocol: str, input_size: Sequence[int] | None) -> str | None:
    return extras.refused_protocol(protocol) or (extras.refused_size(input_size) if input_size else None)


def _check_finetuning(recipe: Graph | Packed, _baseline: Path, material: Material) -> None:
    from segquant.deploy.finetune import crop_of

    crop_of(recipe, material.protocol)


def _finetuning_name(job: Job, identity: Any, protocol: str) -> str:
    from segquant.deploy.finetune import run_name

    return run_name(job.recipe, job.baseline, _codes(job), identity, protocol)


def _codes(job: Job) -> Path | None:
    """The artifact that has the codes of a packed method."""
    return job.folder.parent / job.recipe.source if job.recipe.source else None


def _finetuned(job: Job, build: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """What `build` gives, with the training of a recipe that has one."""
    if not job.recipe.train:
        return build()
    from segquant.deploy.finetune import build_finetuned

    run = _finetuning_name(job, job.material.identity, job.material.protocol)
    return build_finetuned(
        build, job.baseline, job.recipe, job.device, job.material, job.checkpoint, run, job.recording
    )


def _build_graph(job: Job) -> dict[str, Any]:
    from segquant.deploy.build import build_graph

    inputs = (job.baseline, job.recipe, job.folder, job.exports, job.images, job.points and job.points.score)
    return _finetuned(job, partial(build_graph, *inputs))


def _build_packed(job: Job) -> dict[str, Any]:
    from segquant.deploy.build_packed import build_packed

    source = job.methods[job.recipe.source]
    return _finetuned(job, partial(build_packed, _codes(job), source, job.recipe, job.folder, job.images))


_RECIPE = Kind(
    describe=describe,
    unavailable=recipes.unavailable,
    refused=lambda protocol, input_size: None,
    check=recipes.plan,
    check_training=_check_qat,
    training_name=_qat_name,
    build=_build_recipe,
    points=lambda recipe, split: None,
    exports=False,
)
KINDS: dict[type, Kind] = {
    Recipe: _RECIPE,
    Auto: _RECIPE._replace(
        unavailable=lambda recipe, device: None,
        check=candidates.candidates,
        points=lambda recipe, split: None if recipe.points is None else split().points_or_agreement(VERIFIED),
    ),
    Graph: Kind(
        describe=graphs.describe,
        unavailable=lambda recipe, device: extras.unavailable(recipe),
        refused=_refused_by_graphs,
        check=lambda model, recipe: None,
        check_training=_check_finetuning,
        training_name=_finetuning_name,
        build=_build_graph,
        points=lambda recipe, split: None if recipe.max_drop is None else split().points(recipe.calibration_images),
        exports=True,
    ),
    Packed: Kind(
        describe=graphs.describe_packed,
        unavailable=lambda recipe, device: extras.unavailable(recipe),
        refused=_refused_by_graphs,
        check=lambda model, recipe: None,
        check_training=_check_finetuning,
        training_name=_finetuning_name,
        build=_build_packed,
        points=lambda recipe, split: None,
        exports=True,
    ),
}
