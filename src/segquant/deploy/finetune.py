"""Quantization-aware training of a graph towards the float model, converted to what was trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant import models
from segquant.base.config import Graph, Packed
from segquant.base.errors import ConfigError, ModelError
from segquant.data.preprocessing import read_preprocessing
from segquant.deploy.describe import describe, describe_packed
from segquant.deploy.pt2e import Trainable, converted, prepared
from segquant.engines.extras import STEP
from segquant.quant.artifacts import describe_artifact
from segquant.quant.head import fuse_early
from segquant.quant.tensors import finite, round_to_float16
from segquant.training.data import crop_size
from segquant.training.losses import towards
from segquant.training.material import SCALE, Material, Recording, Trainer, name_training

log = logging.getLogger(__name__)
LEAST_AGREEMENT = 0.999  # of the converted graph's classes with those of the trained one, on calibration images


def build_finetuned(
    build: Callable[..., dict[str, Any]],
    baseline: str | Path,
    recipe: Graph | Packed,
    device: torch.device,
    material: Material,
    checkpoint: Path,
    run: str,
    recording: Recording = nullcontext,
) -> dict[str, Any]:
    """What `build(fit=..., run=run)` gives, which makes a graph of a recipe with a `train`, as
    `training.qat.build_trained` does for others. `run` is the training's name.

    Raises DataError without images, ConfigError for a crop that is no multiple of 32, ModelError where the converted
    graph does not give the trained one's classes.
    """
    options = recipe.train
    crop = crop_of(recipe, material.protocol)
    steps = options.epochs * -(-len(material.rows) // options.batch_size)
    trainer = Trainer(recipe, material, read_preprocessing(baseline), checkpoint, run, crop, steps, recording)
    trainer.announce("the graph is calibrated again")

    def fit(model: nn.Module, images: torch.Tensor, fixed: Collection[str] = ()) -> nn.Module:
        graph = Trainable(prepared(model, images, True, fixed)).to(device)
        weights = [p for p in graph.parameters() if p.requires_grad]
        groups = [{"params": weights, "weight_decay": 0.0}]
        teacher = fuse_early(models.load(baseline).to(device))
        trainer.train(graph, towards(teacher), groups, material.validate)
        round_to_float16(parameter for parameter in weights if parameter.ndim == 1)  # as packed graphs store them
        return _as_trained(graph.cpu(), images[:4])

    return trainer.total(build(fit=fit, run=run))


def crop_of(recipe: Graph | Packed, protocol: str) -> int:
    """The crop's side. Raises ConfigError for one that a graph does not take."""
    crop = crop_size(recipe.train.crop, protocol, SCALE)
    if crop % STEP:
        raise ConfigError(f"a graph trains on crops in multiples of {STEP}, not {crop}: give train.crop")
    return crop


def run_name(
    recipe: Graph | Packed, baseline: str | Path, codes: str | Path | None, identity: Any, protocol: str
) -> str:
    """The training's name: the recipe in words, and a digest of all that its result depends on. `codes` is the artifact
    that a packed recipe takes its codes from."""
    if codes:
        identity = [identity, describe_artifact(codes).get("files")]
    words = describe_packed(recipe) if codes else describe(recipe)
    return name_training(words, recipe, [Path(baseline)], identity, protocol)


@torch.no_grad()
def _as_trained(graph: Trainable, images: torch.Tensor) -> nn.Module:
    """The trained graph, converted. Raises ModelError unless its classes on `images` are those of training."""
    expected = graph(images).logits.argmax(1)
    result = converted(graph.graph)
    agreement = (finite(result(images), "the converted graph").argmax(1) == expected).double().mean().item()
    log.info("the converted graph gives %.3f %% of the trained one's classes", 100 * agreement)
    if agreement < LEAST_AGREEMENT:
        raise ModelError(f"only {agreement:.2%} of the converted graph's classes are those that were trained")
    return result
