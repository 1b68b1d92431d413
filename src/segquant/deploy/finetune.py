"""Quantization-aware training of a graph towards the float model, converted to what was trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segquant import models
from segquant.base.config import Graph, Params, Phase
from segquant.base.errors import ConfigError, DataError, ModelError
from segquant.base.files import digest, sha256
from segquant.base.hub import files
from segquant.base.ranks import ranks
from segquant.deploy.build import build_graph
from segquant.deploy.describe import describe
from segquant.deploy.graph import STEP
from segquant.deploy.pt2e import Trainable, converted, prepared
from segquant.deploy.qdq import Score
from segquant.quant.head import fuse_early
from segquant.training.baseline import scorer
from segquant.training.data import Crops, crop_size
from segquant.training.loop import announce, silent, train
from segquant.training.losses import towards
from segquant.training.qat import SCALE, Material, Recording

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
    options, normalization = recipe.train, models.normalization(baseline)
    if not len(material.rows):
        raise DataError("there are no images to train on")
    crop = crop_of(recipe, material.protocol)
    steps = options.epochs * -(-len(material.rows) // options.batch_size)
    run = run_name(recipe, baseline, material.identity, material.protocol)
    announce(checkpoint, run, "the graph is calibrated again")
    before: list[float] = []  # seconds that this training took before it was killed

    def samples(crop: int, first: int, length: int) -> Crops:
        return Crops(material.rows, crop, SCALE, options.seed, first, length, material.protocol, normalization)

    def fit(model: nn.Module, images: torch.Tensor) -> nn.Module:
        # A step is so many forward passes: the ones that torch.chunk, which need not give what is asked, makes of it.
        share = torch.empty(max(1, options.batch_size // ranks()[1]))
        forward = steps * len(share.chunk(options.accumulate))
        graph = Trainable(prepared(model, images, trained=True), int(options.observe * forward))
        weights = [p for p in graph.parameters() if p.requires_grad]
        with recording() as record:
            earlier = train(
                graph.to(device),
                samples,
                towards(fuse_early(model.to(device))),
                options,
                (Phase(steps, crop, options.batch_size),),
                [{"params": weights, "weight_decay": 0.0}],
                checkpoint=checkpoint,
                run=run,
                validate=material.validate,
                record=record or silent,
            )
        before.append(earlier)
        return _as_trained(graph.cpu(), images[:4])

    times = build_graph(baseline, recipe, folder, Path(), images, fit=fit, run=run)
    return {**times, "seconds": round(times["seconds"] + sum(before), 3)} if "seconds" in times else times


def points(
    params: Params, rows: Sequence[dict], classes: Sequence[str], baseline: str | Path, label_map: np.ndarray | None
) -> Score:
    """What scores a model on labelled rows, in points of mIoU."""
    score = scorer(params, rows, classes, models.normalization(baseline), label_map)
    return lambda model: 100 * score(model).scores.mean_iou


def crop_of(recipe: Graph, protocol: str) -> int:
    """The crop's side. Raises ConfigError for one that a graph does not take."""
    crop = crop_size(recipe.train.crop, protocol, SCALE)
    if crop % STEP:
        raise ConfigError(f"a graph trains on crops in multiples of {STEP}, not {crop}: give train.crop")
    return crop


def run_name(recipe: Graph, baseline: str | Path, identity: Any, protocol: str) -> str:
    """What a training is, in words, and a digest of all that its result depends on."""
    weights = [sha256(path) for path in files(Path(baseline))]
    depends = [asdict(replace(recipe, train=None)), recipe.train.result(), weights, identity, protocol]
    return f"{describe(recipe)} [{digest(depends)[:16]}]"


@torch.no_grad()
def _as_trained(graph: Trainable, images: torch.Tensor) -> nn.Module:
    """The trained graph, converted. Raises ModelError unless its classes on `images` are those of training."""
    wanted = graph(images).logits.argmax(1)
    result = converted(graph.graph)
    agreement = (result(images).argmax(1) == wanted).double().mean().item()
    log.info("the converted graph gives %.3f %% of the trained one's classes", 100 * agreement)
    if agreement < LEAST_AGREEMENT:
        raise ModelError(f"only {agreement:.2%} of the converted graph's classes are those that were trained")
    return result
