"""Quantization-aware training: from the codes that calibration found to better ones, towards the float model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from segquant import models
from segquant.config import Params, Phase, Qat, Recipe
from segquant.data.calibration import calibration_images
from segquant.data.images import IGNORE, decode_annotation
from segquant.data.shards import read_manifest, read_rows
from segquant.errors import ConfigError, DataError
from segquant.evaluation.head import fuse_early, fused_live
from segquant.evaluation.loop import Evaluation
from segquant.files import sha256
from segquant.hub import files, locate
from segquant.quant import fake
from segquant.quant.build import build, take
from segquant.quant.methods import Found, Refine, describe
from segquant.quant.tensors import as_float16
from segquant.ranks import ranks
from segquant.training.baseline import scorer
from segquant.training.data import Crops
from segquant.training.distill import shared_input
from segquant.training.loop import Loss, Record, silent, train
from segquant.training.losses import cross_entropy, distillation

Recording = Callable[[], AbstractContextManager[Record | None]]  # around a training
RANGES, REST = 0.0075, 0.0025  # learning rates of ranges, and of biases and norms, as shares of the codes'
SCALE = (0.9, 1.3)  # of images before cropping: much smaller crops or other scales fit what evaluation does not see


def build_trained(
    baseline: str | Path,
    recipe: Recipe,
    folder: str | Path,
    device: torch.device,
    images: Callable[[], torch.Tensor],
    source: Sequence[dict],
    data: Any,
    protocol: str,
    checkpoint: str | Path,
    trained: str | Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`build` for a recipe with a `train`, on the rows of `source`, of which `data` is JSON that says what they are.

    The artifact `trained` is taken where it came out of the very same training. `images` makes those to calibrate on;
    options as `refiner` takes them.
    """
    involved = [folder for folder in (Path(baseline), _teacher(recipe.train, baseline)) if folder]
    depends = [asdict(recipe), [sha256(path) for folder in involved for path in files(folder)], data, protocol]
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    run = f"{describe(recipe)} [{digest[:16]}]"
    times = take(trained, folder, run) if trained else None
    if not times:
        refine = refiner(recipe.train, baseline, source, protocol, run=run, checkpoint=checkpoint, **options)
        times = build(baseline, recipe, folder, device, images(), refine, run)
    if not ranks()[0]:
        Path(checkpoint).unlink(missing_ok=True)
    return times


def from_shards(
    params: Params,
    method: str,
    baseline: str | Path,
    shards: str | Path,
    folder: str | Path,
    trained: str | Path | None = None,
    recording: Recording = nullcontext,
) -> dict[str, Any]:
    """`build_trained` for a method of params.yaml on the pipeline's shards."""
    recipe, normalization = params.quant.methods[method], models.normalization(baseline)
    if not recipe.train:
        raise ConfigError(f"quant.methods.{method} has no train section: there is nothing to train")
    manifest = read_manifest(shards)
    split, classes = manifest["splits"]["train"], manifest["classes"]
    validation = list(read_rows(shards, "validation", recipe.train.validation_images))
    num_labels = models.load(baseline).config.num_labels
    # Pictures that are drawn on the spot may differ in a last bit between processors; their labels do not.
    content = split["class_pixels"] if params.data.source == "scenes" else split["content"]
    return build_trained(
        baseline, recipe, folder, models.device(params.eval.device),
        lambda: calibration_images(shards, recipe.calibration_images, params.protocol, normalization),
        list(read_rows(shards, "train")), [params.data.source, split["images"], content], params.protocol,
        Path("models/checkpoints") / f"{method}.pt", trained, recording=recording,
        validate=scorer(params, validation, classes, num_labels, normalization),
    )  # fmt: skip


def refiner(
    options: Qat,
    baseline: str | Path,
    source: Sequence[dict],
    protocol: str,
    *,
    run: str,
    checkpoint: str | Path,
    validate: Callable[[nn.Module], Evaluation] | None = None,
    recording: Recording = nullcontext,
) -> Refine:
    """A `refine` for `methods.quantize`: trains on the rows of `source`, whose labels only teacher `none` looks at.

    `baseline` is the folder of the float model, `run` says what the training depends on; `recording` gives `train` its
    record. Raises ModelError for a teacher that is missing or does not fit, DataError where there is nothing to learn
    from.
    """
    if not len(source):
        raise DataError("there are no images to train on")
    teacher, normalization = None, models.normalization(baseline)
    folder = _teacher(options, baseline)
    if folder:
        teacher = models.load(folder)
        shared_input(models.load(baseline), teacher, baseline, folder)
    elif not any(_labelled(source[i]) for i in range(len(source))):
        raise DataError("teacher 'none' learns from labels, and no pixel of the train split has one: use float32")

    def refine(model: nn.Module, found: Found, bits: Mapping[str, int], convs: Sequence[str]) -> Found:
        groups = _attach(model, found, bits, convs, options)
        device = next(model.parameters()).device

        def samples(crop: int, first: int, length: int) -> Crops:
            return Crops(source, crop, SCALE, options.seed, first, length, protocol, normalization)

        def score(model: nn.Module) -> Evaluation:
            with parametrize.cached():
                return validate(model)

        loss = _loss(teacher and fuse_early(teacher.to(device)))
        phases = (Phase(options.steps, options.crop, options.batch_size),)
        with fused_live(model.eval()), recording() as record:
            train(
                model, samples, loss, options, phases, checkpoint=Path(checkpoint), run=run, groups=groups,
                validate=validate and score, record=record or silent,
            )  # fmt: skip
        return _detach(model, list(found), convs)

    return refine


def _labelled(row: dict) -> bool:
    return row["annotation"] is not None and bool((decode_annotation(row["annotation"]) != IGNORE).any())


def _teacher(options: Qat, baseline: str | Path) -> Path | None:
    if options.teacher == "none":
        return None
    return Path(baseline) if options.teacher == "float32" else locate(options.teacher)


def _loss(teacher: nn.Module | None) -> Loss:
    def taught(model: nn.Module, images: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = teacher(images).logits
        return distillation(model(images).logits, wanted)

    def labelled(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(images).logits, labels)

    return taught if teacher else labelled


def _attach(model: nn.Module, found: Found, bits: Mapping[str, int], convs: Sequence[str], options: Qat) -> list[dict]:
    """Fake-quantize `model` in place; the parameter groups of what is trained."""
    codes, ranges = [], []
    for name, (start, bias) in found.items():
        linear = model.get_submodule(name)
        if bias is not None:
            linear.bias = nn.Parameter(bias)
        ranges += fake.attach(linear, start, bits[name]).parameters()
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
    return [
        {"params": parameters, "lr": options.lr * share, "weight_decay": options.weight_decay}
        for parameters, share in chosen
    ]


@torch.no_grad()
def _detach(model: nn.Module, names: Sequence[str], convs: Sequence[str]) -> Found:
    """The codes and biases of the named layers of a trained model, which is left without its fake quantization."""
    round_rest(model)
    for name in convs:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=False)
    linears = {name: model.get_submodule(name) for name in names}
    found = {name: (fake.detach(linear), linear.bias) for name, linear in linears.items()}
    model.requires_grad_(False)
    return found


@torch.no_grad()
def round_rest(model: nn.Module) -> None:
    """Round biases and norms as they will be stored."""
    for name, parameter in model.named_parameters():
        if "parametrizations" not in name:
            parameter.copy_(as_float16(parameter))
