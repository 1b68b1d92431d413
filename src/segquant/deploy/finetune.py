"""Quantization-aware training of a graph towards the float model, converted to what was trained."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segquant.base.config import Graph
from segquant.base.errors import ConfigError, ModelError
from segquant.base.ranks import ranks
from segquant.data.preprocessing import read_preprocessing
from segquant.deploy.build import build_graph
from segquant.deploy.describe import describe
from segquant.deploy.pt2e import Trainable, converted, prepared
from segquant.engines.extras import STEP
from segquant.quant.head import fuse_early
from segquant.quant.tensors import finite
from segquant.training.data import crop_size
from segquant.training.losses import towards
from segquant.training.material import SCALE, Material, Recording, Trainer, name_training

log = logging.getLogger(__name__)
LEAST_AGREEMENT = 0.999  # of the converted graph's classes with those of the trained one, on calibration images


def build_finetuned(
    baseline: str | Path,
    recipe: Graph,
    folder: str | Path,
    device: torch.device,
    images: torch.Tensor,
    material: Material,
    checkpoint: Path,
    recording: Recording = nullcontext,
) -> dict[str, Any]:
    """`build_graph` for a recipe with a `train`, as `training.qat.build_trained` is for others.

    Raises DataError without images, ConfigError for a crop that is no multiple of 32, ModelError where the converted
    graph does not give the trained one's classes.
    """
    options = recipe.train
    crop = crop_of(recipe, material.protocol)
    steps = options.epochs * -(-len(material.rows) // options.batch_size)
    run = run_name(recipe, baseline, material.identity, material.protocol)
    trainer = Trainer(recipe, material, read_preprocessing(baseline), checkpoint, run, crop, steps, recording)
    trainer.announce("the graph is calibrated again")

    def fit(model: nn.Module, images: torch.Tensor) -> nn.Module:
        # torch.chunk makes the forward passes of a step, which may be fewer than were asked for.
        share = torch.empty(max(1, options.batch_size // ranks()[1]))
        passes = steps * len(share.chunk(options.accumulate))
        graph = Trainable(prepared(model, images, trained=True), int(options.observe * passes)).to(device)
        weights = [p for p in graph.parameters() if p.requires_grad]
        groups = [{"params": weights, "weight_decay": 0.0}]
        trainer.train(graph, towards(fuse_early(model.to(device))), groups, material.validate)
        return _as_trained(graph.cpu(), images[:4])

    return trainer.total(build_graph(baseline, recipe, folder, Path(), images, fit=fit, run=run))


def crop_of(recipe: Graph, protocol: str) -> int:
    """The crop's side. Raises ConfigError for one that a graph does not take."""
    crop = crop_size(recipe.train.crop, protocol, SCALE)
    if crop % STEP:
        raise ConfigError(f"a graph trains on crops in multiples of {STEP}, not {crop}: give train.crop")
    return crop


def run_name(recipe: Graph, baseline: str | Path, identity: Any, protocol: str) -> str:
    """The training's name: the recipe in words, and a digest of all that its result depends on."""
    return name_training(describe(recipe), recipe, [Path(baseline)], identity, protocol)


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
