"""Quantization-aware training: from the codes that calibration found to better ones, towards the float model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from segquant import models
from segquant.base.config import Auto, Qat, Recipe
from segquant.base.errors import DataError
from segquant.base.hub import locate
from segquant.data.images import IGNORE, decode_annotation
from segquant.data.preprocessing import read_preprocessing
from segquant.evaluation.loop import Evaluation
from segquant.quant import fake
from segquant.quant.build import build
from segquant.quant.codes import Grid
from segquant.quant.describe import describe
from segquant.quant.head import fuse_early, fused_live
from segquant.quant.points import Points
from segquant.quant.recipes import LayerCodes
from segquant.quant.tensors import round_to_float16
from segquant.training.data import crop_size
from segquant.training.distill import check_labels, shared_input
from segquant.training.losses import towards
from segquant.training.material import SCALE, Material, Recording, Trainer, name_training

RANGES, REST = 0.0075, 0.0025  # learning rates of ranges, and of biases and norms, as shares of the codes'


def build_trained(
    baseline: str | Path,
    recipe: Recipe | Auto,
    folder: str | Path,
    device: torch.device,
    images: torch.Tensor,
    material: Material,
    checkpoint: Path,
    recording: Recording = nullcontext,
    points: Points | None = None,
) -> dict[str, Any]:
    """`build` for a recipe with a `train`: on `material`, whose labels only teacher `none` looks at.

    A run that was killed goes on from the file `checkpoint`, which the caller removes; `recording` gives `train` its
    record. Raises as `load_teacher` does, and SegquantError when the loss stops being finite.
    """
    options = recipe.train
    crop = crop_size(options.crop, material.protocol, SCALE)
    teacher = load_teacher(options, baseline, material)
    run = run_name(recipe, baseline, material.identity, material.protocol)
    preprocessing = read_preprocessing(baseline)
    trainer = Trainer(recipe, material, preprocessing, checkpoint, run, crop, options.steps, recording)
    trainer.announce("the layers are calibrated again")

    def refine(model: nn.Module, start: LayerCodes, grids: Mapping[str, Grid], convs: Sequence[str]) -> LayerCodes:
        groups = _attach(model, start, grids, convs, options)

        def validate(model: nn.Module) -> Evaluation:
            with parametrize.cached():
                return material.validate(model)

        with fused_live(model.eval()):
            loss = towards(teacher and fuse_early(teacher.to(device)))
            trainer.train(model, loss, groups, material.validate and validate)
        return _detach(model, list(start), convs)

    return trainer.total(build(baseline, recipe, folder, device, images, refine, run, points))


def run_name(recipe: Recipe | Auto, baseline: str | Path, identity: Any, protocol: str) -> str:
    """The training's name: the recipe in words, and a digest of all that its result depends on."""
    involved = [folder for folder in (Path(baseline), _teacher(recipe.train, baseline)) if folder]
    return name_training(describe(recipe), recipe, involved, identity, protocol)


def load_teacher(options: Qat, baseline: str | Path, material: Material) -> nn.Module | None:
    """The model to learn from, None where labels are.

    Raises ModelError for a teacher that is missing or does not fit, DataError and ConfigError where there is nothing
    to learn from.
    """
    if not len(material.rows):
        raise DataError("there are no images to train on")
    folder = _teacher(options, baseline)
    student = models.load(baseline)
    if folder == Path(baseline):
        return student
    if folder:
        teacher = models.load(folder)
        shared_input(student, teacher, baseline, folder)
        return teacher
    if not any(_labelled(material.rows[i]) for i in range(len(material.rows))):
        raise DataError("teacher 'none' learns from labels, and no pixel of the train split has one: use float32")
    check_labels(str(baseline), student, "the train split", material.classes, material.as_labelled)
    return None


def _labelled(row: dict) -> bool:
    return row["annotation"] is not None and bool((decode_annotation(row["annotation"]) != IGNORE).any())


def _teacher(options: Qat, baseline: str | Path) -> Path | None:
    if options.teacher == "none":
        return None
    return Path(baseline) if options.teacher == "float32" else locate(options.teacher)


def _attach(
    model: nn.Module, start: LayerCodes, grids: Mapping[str, Grid], convs: Sequence[str], options: Qat
) -> list[dict]:
    """Fake-quantize `model` in place; the parameter groups of what is trained."""
    round_to_float16(model.buffers())  # statistics of normalization
    codes, ranges = [], []
    for name, (layer_codes, bias) in start.items():
        linear = model.get_submodule(name)
        if bias is not None:
            linear.bias = nn.Parameter(bias)
        ranges += fake.attach(linear, layer_codes, grids[name]).parameters()
        codes.append(linear.parametrizations.weight.original)
    for name in convs:
        parametrize.register_parametrization(model.get_submodule(name), "weight", fake.FakeInt8())
    taken = {id(p) for p in codes + ranges}
    rest = [p for p in model.parameters() if id(p) not in taken]
    chosen = [(codes, 1.0), (rest, REST)] + ([(ranges, RANGES)] if options.range_learning else [])
    model.requires_grad_(False)
    for parameters, _ in chosen:
        for parameter in parameters:
            parameter.requires_grad_(True)
    return [{"params": parameters, "lr": options.lr * share, "weight_decay": 0.0} for parameters, share in chosen]


@torch.no_grad()
def _detach(model: nn.Module, names: Sequence[str], convs: Sequence[str]) -> LayerCodes:
    """The codes and biases of the named layers of a trained model, which is left without its fake quantization."""
    round_rest(model)
    for name in convs:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=False)
    linears = {name: model.get_submodule(name) for name in names}
    trained = {name: (fake.detach(linear), linear.bias) for name, linear in linears.items()}
    model.requires_grad_(False)
    return trained


def round_rest(model: nn.Module) -> None:
    """Round biases and norms as they will be stored."""
    round_to_float16(parameter for name, parameter in model.named_parameters() if "parametrizations" not in name)
