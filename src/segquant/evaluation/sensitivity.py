"""What each layer costs when it alone is quantized: points of mean IoU, and noise in the logits."""

from __future__ import annotations

import copy
import csv
import io
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
from segquant.base.progress import progress
from segquant.data.images import IGNORE, decode_annotation, decode_image
from segquant.data.label_map import load_label_map
from segquant.data.protocols import Normalization, normalize, resize
from segquant.evaluation import metric
from segquant.evaluation.predict import forward
from segquant.evaluation.upsample import class_map
from segquant.quant.coverage import choose, dense_convs
from segquant.quant.recipes import fitting, quantize

COLUMNS = ("module", "parameters", "bits", "mean_iou_loss", "snr_db")


def sensitivity(
    model: nn.Module,
    rows: Sequence[dict],
    asked: Sensitivity,
    *,
    num_classes: int,
    protocol: str,
    normalization: Normalization,
    label_map: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Quantize the weights of each Linear and dense Conv2d in turn, all else float32, and score the labelled `rows`.

    Gives a row of COLUMNS for each width of `asked.bits` and layer, in the model's order: the loss in points of
    mIoU (0 to 100) and the logits' signal-to-noise in dB (None where they did not change). The images are held in
    memory, with float32's logits.
    """
    images = [normalize(resize(decode_image(row["image"], row["id"]), protocol), normalization)[None] for row in rows]
    labels = [torch.from_numpy(decode_annotation(row["annotation"]).copy()) for row in rows]
    exact = [forward(model, image)[0] for image in images]

    if all(bool((label == IGNORE).all()) for label in labels):
        raise DataError("there is no labelled pixel to score on: every one is to be ignored")

    def score(logits: Iterable[torch.Tensor]) -> float:
        confusion = metric.new_confusion(num_classes)
        for one, label in zip(logits, labels, strict=True):
            prediction = class_map(one, *label.shape).cpu()
            if label_map is not None:
                prediction = torch.from_numpy(label_map)[prediction.long()]
            metric.update(confusion, prediction, label)
        return 100 * metric.compute(confusion).mean_iou

    wanted = score(exact)
    power = sum(one.square().sum().item() for one in exact)
    dense, names = set(dense_convs(model)), choose(model, "all")
    names = [name for name in names if name in dense or isinstance(model.get_submodule(name), nn.Linear)]
    found = []
    with progress(total=len(names) * len(asked.bits), desc="sensitivity", unit="layer") as bar:
        for width in asked.bits:
            for name in names:
                layer = model.get_submodule(name)
                original = layer.weight.data
                fitted = fitting(layer.weight[0].numel(), asked.group_size)
                layer.weight.data = _quantized(layer, Recipe(f"int{width}", fitted, asked.algorithm))
                try:
                    logits = [forward(model, image)[0] for image in images]
                finally:
                    layer.weight.data = original
                noise = sum((a - b).square().sum().item() for a, b in zip(logits, exact, strict=True))
                snr = 10 * math.log10(power / noise) if noise and power else None
                values = (name, original.numel(), width, wanted - score(logits), snr)
                found.append(dict(zip(COLUMNS, values, strict=True)))
                bar.update()
    return found


def _quantized(layer: nn.Module, recipe: Recipe) -> torch.Tensor:
    """The weight of a layer as `recipe` leaves it, as float32 of its own shape."""
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
        normalization=models.normalization(baseline),
        label_map=load_label_map(label_map, model.config.num_labels, classes),
    )


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        snr = "" if row["snr_db"] is None else f"{row['snr_db']:.2f}"
        rounded = {"mean_iou_loss": f"{row['mean_iou_loss']:.4f}", "snr_db": snr}
        writer.writerow({**row, **rounded})
    return text.getvalue()
