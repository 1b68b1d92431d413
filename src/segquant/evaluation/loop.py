"""Score a model on labelled rows: one confusion matrix, and the share of pixels that float32 gives too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from segquant.data.images import decode_annotation
from segquant.data.protocols import IMAGENET, Normalization
from segquant.errors import DataError
from segquant.evaluation import metric
from segquant.evaluation.predict import predict
from segquant.progress import progress


@dataclass(frozen=True)
class Evaluation:
    """`agreement` is the fraction of all pixels with the reference's class (of the model's own classes),
    None without a reference.

    `pictures` are the class maps uint8 (H, W) of the first images, by id, in the data set's classes.
    """

    scores: metric.Scores
    agreement: float | None
    n_images: int
    pictures: dict[str, np.ndarray]


def evaluate(
    model: nn.Module,
    rows: Iterable[dict],
    total: int,
    *,
    num_classes: int,
    protocol: str,
    batch_size: int = 8,
    normalization: Normalization = IMAGENET,
    label_map: np.ndarray | None = None,
    reference: Iterable[tuple[str, np.ndarray]] | None = None,
    pictures: int = 0,
    desc: str = "evaluate",
) -> Evaluation:
    """Evaluate `model` on `rows` (shard rows) against their annotations at the labels' own size.

    `label_map` (model classes,) gives each model class its class of the data set; `reference` gives
    (id, class map) of the same rows in the same order. Raises DataError when the two do not match.
    """
    confusion = metric.new_confusion(num_classes)
    same = pixels = count = 0
    kept: dict[str, np.ndarray] = {}
    expected = iter(reference) if reference is not None else None
    with progress(total=total, desc=desc, unit="image") as bar:
        for row, prediction in predict(model, rows, protocol, batch_size, normalization):
            if expected is not None:
                name, wanted = next(expected, ("nothing", None))
                if name != row["id"] or wanted.shape != prediction.shape:
                    raise DataError(f"the reference has {name} where the shards have {row['id']}: make it again")
                same += int((wanted == prediction).sum())
                pixels += prediction.size
            mapped = prediction if label_map is None else label_map[prediction]
            if count < pictures:
                kept[row["id"]] = mapped
            label = decode_annotation(row["annotation"])
            metric.update(confusion, torch.from_numpy(mapped), torch.from_numpy(label.copy()))
            count += 1
            bar.update()
    if not count:
        raise DataError("there are no images to evaluate")
    if not confusion.any():
        raise DataError("there is no labelled pixel to evaluate on: every one is to be ignored")
    return Evaluation(metric.compute(confusion), same / pixels if pixels else None, count, kept)
