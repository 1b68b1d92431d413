"""Quantization-aware training: from the codes that calibration found to better ones, towards the float model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrize

from segquant import models
from segquant.base.config import Params, Phase, Qat, Recipe
from segquant.base.errors import ConfigError, DataError
from segquant.base.files import digest, sha256
from segquant.base.hub import files, locate
from segquant.base.ranks import ranks
from segquant.data.calibration import calibration_images
from segquant.data.images import IGNORE, decode_annotation
from segquant.data.label_map import load_label_map
from segquant.data.shards import read_manifest, read_rows
from segquant.evaluation.loop import Evaluation
from segquant.quant import fake
from segquant.quant.artifacts import load_quantized
from segquant.quant.build import build, take
from segquant.quant.head import fuse_early, fused_live
from segquant.quant.recipes import Found, describe
from segquant.quant.tensors import as_float16
from segquant.training.baseline import scorer
from segquant.training.data import Crops, crop_size
from segquant.training.distill import check_labels, shared_input
from segquant.training.loop import Record, announce, silent, train
from segquant.training.losses import towards

Recording = Callable[[], AbstractContextManager[Record | None]]  # around a training
RANGES, REST = 0.0075, 0.0025  # learning rates of ranges, and of biases and norms, as shares of the codes'
SCALE = (0.9, 1.3)  # of images before cropping: much smaller crops or other scales fit what evaluation does not see


class Material(NamedTuple):
    """What there is to train on: rows, the names of their labels' classes (none without labels), and JSON that says
    which rows they are; `validate` evaluates a model on other rows. `mapped` says that the labels' classes are not
    the model's own."""

    rows: Sequence[dict]
    classes: Sequence[str]
    identity: Any
    protocol: str
    validate: Callable[[nn.Module], Evaluation] | None = None
    mapped: bool = False


class Route(NamedTuple):
    """How a method with a `train` is named as a training, built, and loaded: as the three functions of this package."""

    name: Callable[..., str]
    build: Callable[..., dict[str, Any]]
    load: Callable[[Path], Any]


def from_shards(
    params: Params,
    method: str,
    baseline: str | Path,
    shards: str | Path,
    folder: str | Path,
    trained: str | Path | None = None,
    recording: Recording = nullcontext,
    route: Route | None = None,
) -> dict[str, Any]:
    """`build_trained`, or another `route`, for a method of params.yaml on the pipeline's shards.

    The artifact `trained`, if there is one, is taken where it came out of the very same training.
    """
    named, make, load = route or Route(run_name, build_trained, load_quantized)
    recipe, protocol = params.quant.methods[method], params.protocol
    if not recipe.train:
        raise ConfigError(f"quant.methods.{method} has no train section: there is nothing to train")
    manifest = read_manifest(shards)
    split, classes = manifest["splits"]["train"], manifest["classes"]
    # Pictures that are drawn on the spot may differ in a last bit between processors; their labels do not.
    content = split["class_pixels"] if params.data.source == "scenes" else split["content"]
    identity = [params.data.source, split["images"], content]
    times = take(trained, folder, named(recipe, baseline, identity, protocol), load) if trained else None
    if times:
        return times
    normalization = models.normalization(baseline)
    label_map = load_label_map(params.data.label_map, models.load(baseline).config.num_labels, classes)
    validation = list(read_rows(shards, "validation", recipe.train.validation_images))
    validate = scorer(params, validation, classes, normalization, label_map)
    checkpoint = Path("models/checkpoints") / f"{method}.pt"
    times = make(
        baseline,
        recipe,
        folder,
        models.device(params.eval.device),
        calibration_images(shards, recipe.calibration_images, protocol, normalization),
        Material(list(read_rows(shards, "train")), classes, identity, protocol, validate, label_map is not None),
        checkpoint,
        recording,
    )
    if not ranks()[0]:
        checkpoint.unlink(missing_ok=True)
    return times


def build_trained(
    baseline: str | Path,
    recipe: Recipe,
    folder: str | Path,
    device: torch.device,
    images: torch.Tensor,
    material: Material,
    checkpoint: Path,
    recording: Recording = nullcontext,
) -> dict[str, Any]:
    """`build` for a recipe with a `train`: on `material`, whose labels only teacher `none` looks at.

    A run that was killed goes on from the file `checkpoint`, which the caller removes; `recording` gives `train` its
    record. Raises as `load_teacher` does, and SegquantError when the loss stops being finite.
    """
    options, normalization = recipe.train, models.normalization(baseline)
    before: list[float] = []  # seconds that this training took before it was killed
    crop = crop_size(options.crop, material.protocol, SCALE)
    teacher = load_teacher(options, baseline, material)
    run = run_name(recipe, baseline, material.identity, material.protocol)
    announce(checkpoint, run, "the layers are calibrated again")

    def refine(model: nn.Module, found: Found, bits: Mapping[str, int], convs: Sequence[str]) -> Found:
        groups = _attach(model, found, bits, convs, options)

        def samples(crop: int, first: int, length: int) -> Crops:
            return Crops(material.rows, crop, SCALE, options.seed, first, length, material.protocol, normalization)

        def score(model: nn.Module) -> Evaluation:
            with parametrize.cached():
                return material.validate(model)

        loss = towards(teacher and fuse_early(teacher.to(device)))
        phases = (Phase(options.steps, crop, options.batch_size),)
        with fused_live(model.eval()), recording() as record:
            earlier = train(
                model,
                samples,
                loss,
                options,
                phases,
                groups,
                checkpoint=checkpoint,
                run=run,
                validate=material.validate and score,
                record=record or silent,
            )
        before.append(earlier)
        return _detach(model, list(found), convs)

    times = build(baseline, recipe, folder, device, images, refine, run)
    return {**times, "seconds": round(times["seconds"] + sum(before), 3)} if "seconds" in times else times


def run_name(recipe: Recipe, baseline: str | Path, identity: Any, protocol: str) -> str:
    """What a training is, in words, and a digest of all that its result depends on."""
    involved = [folder for folder in (Path(baseline), _teacher(recipe.train, baseline)) if folder]
    weights = [sha256(path) for folder in involved for path in files(folder)]
    depends = [asdict(replace(recipe, train=None)), recipe.train.result(), weights, identity, protocol]
    return f"{describe(recipe)} [{digest(depends)[:16]}]"


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
    check_labels(str(baseline), student.config.num_labels, "the train split", len(material.classes), material.mapped)
    return None


def _labelled(row: dict) -> bool:
    return row["annotation"] is not None and bool((decode_annotation(row["annotation"]) != IGNORE).any())


def _teacher(options: Qat, baseline: str | Path) -> Path | None:
    if options.teacher == "none":
        return None
    return Path(baseline) if options.teacher == "float32" else locate(options.teacher)


def _attach(model: nn.Module, found: Found, bits: Mapping[str, int], convs: Sequence[str], options: Qat) -> list[dict]:
    """Fake-quantize `model` in place; the parameter groups of what is trained."""
    with torch.no_grad():
        _round(model.buffers())  # statistics of normalization
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
    return [{"params": parameters, "lr": options.lr * share, "weight_decay": 0.0} for parameters, share in chosen]


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
    _round(parameter for name, parameter in model.named_parameters() if "parametrizations" not in name)


def _round(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.copy_(as_float16(tensor))
