"""Quantize one layer at a time and measure the cost: points of mean IoU, and noise in the logits."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segquant import models
from segquant.base.config import Params, Recipe, Sensitivity
from segquant.base.errors import DataError
from segquant.base.files import csv_text
from segquant.base.progress import progress
from segquant.data.images import IGNORE, decode_image
from segquant.data.label_map import class_names, match_classes
from segquant.data.preprocessing import Preprocessing, read_preprocessing
from segquant.data.protocols import model_input
from segquant.evaluation import metric
from segquant.evaluation.loop import row_label
from segquant.evaluation.predict import forward
from segquant.evaluation.upsample import class_map
from segquant.quant.coverage import choose, dense_convs
from segquant.quant.recipes import check_group_sizes, fitting, quantize
from segquant.quant.tensors import finite

COLUMNS = ("module", "parameters", "bits", "mean_iou_loss", "snr_db")


def sensitivity(
    model: nn.Module,
    rows: Sequence[dict],
    settings: Sensitivity,
    *,
    num_classes: int,
    protocol: str,
    preprocessing: Preprocessing,
    label_map: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Quantize the weights of each Linear and dense Conv2d alone, keep all else float32, and score labelled `rows`.

    Returns a dict of COLUMNS for each number of bits and each layer, in the model's order: the loss in points of mIoU
    (0 to 100) and the signal-to-noise ratio of the logits in dB (None if they did not change). The images and the
    float32 logits stay in memory. Raises DataError when no pixel has a label, ConfigError for a group size
    that divides no layer's inputs.
    """
    if not rows:
        raise DataError("there is no readable image to score on: see the images that were skipped")
    images = [
        model_input(decode_image(row["image"], row["id"]), protocol, preprocessing, row["id"])[None] for row in rows
    ]
    labels = [row_label(row, row["id"], num_classes) for row in rows]
    exact = [finite(forward(model, image)[0], "the model") for image in images]

    if all(bool((label == IGNORE).all()) for label in labels):
        raise DataError(f"there is no labelled pixel to score on: every label is {IGNORE}, which is ignored")

    def score(logits: Iterable[torch.Tensor]) -> float:
        confusion = metric.new_confusion(num_classes)
        for image_logits, label in zip(logits, labels, strict=True):
            prediction = class_map(image_logits, *label.shape).cpu()
            if label_map is not None:
                prediction = torch.from_numpy(label_map)[prediction.long()]
            metric.update(confusion, prediction, label)
        return 100 * metric.compute(confusion).mean_iou

    float_score = score(exact)
    power = sum(logits.square().sum().item() for logits in exact)
    dense, names = set(dense_convs(model)), choose(model, "all")
    names = [name for name in names if name in dense or isinstance(model.get_submodule(name), nn.Linear)]
    check_group_sizes([settings.group_size], [model.get_submodule(name).weight[0].numel() for name in names])
    costs = []
    with progress(total=len(names) * len(settings.bits), desc="sensitivity", unit="layer") as bar:
        for bits in settings.bits:
            for name in names:
                layer = model.get_submodule(name)
                original = layer.weight.data
                group_size = fitting(layer.weight[0].numel(), settings.group_size)
                layer.weight.data = _quantized_weight(layer, Recipe(f"int{bits}", group_size, settings.algorithm))
                try:
                    logits = [finite(forward(model, image)[0], f"{name} at {bits} bits") for image in images]
                finally:
                    layer.weight.data = original
                noise = sum((a - b).square().sum().item() for a, b in zip(logits, exact, strict=True))
                snr = 10 * math.log10(power / noise) if noise and power else None
                values = (name, original.numel(), bits, float_score - score(logits), snr)
                costs.append(dict(zip(COLUMNS, values, strict=True)))
                bar.update()
    return costs


def _quantized_weight(layer: nn.Module, recipe: Recipe) -> torch.Tensor:
    """A layer's weight after quantization by `recipe`, dequantized to float32, in its original shape."""
    holder = nn.ModuleDict({"layer": copy.deepcopy(layer)})
    (name,) = quantize(holder, recipe, layer.weight.device)
    return holder.get_submodule(name).weight.dequantize().view_as(layer.weight)


def layers(
    params: Params,
    options: Sensitivity,
    baseline: str | Path,
    rows: Sequence[dict],
    classes: Sequence[str],
    label_map: str | None,
) -> list[dict[str, Any]]:
    """`sensitivity` of the float model in the folder `baseline`, on labelled rows of a data set of `classes`."""
    model = models.load(baseline).to(models.device(params.eval.device))
    return sensitivity(
        model,
        rows,
        options,
        num_classes=len(classes),
        protocol=params.protocol,
        preprocessing=read_preprocessing(baseline),
        label_map=match_classes(class_names(model.config), classes, label_map),
    )


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The result of `sensitivity` as CSV text with a header."""
    decimals = {"mean_iou_loss": 4, "snr_db": 2}

    def cell(row: dict[str, Any], key: str) -> Any:
        return row[key] if key not in decimals or row[key] is None else f"{row[key]:.{decimals[key]}f}"

    return csv_text(([cell(row, key) for key in COLUMNS] for row in rows), COLUMNS)
