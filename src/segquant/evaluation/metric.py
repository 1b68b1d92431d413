"""Mean IoU, mean accuracy and overall accuracy from one confusion matrix over the whole data set.

The definitions follow Hugging Face's `mean_iou`: the label decides which pixels are ignored; a class that neither
occurs nor is predicted has no IoU (NaN) and does not enter the mean; counts are summed over the whole data set before
any ratio is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segquant.data.images import IGNORE, STRIP
from segquant.evaluation.means import by_class, means


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1]; the arrays `iou` and `accuracy` (C,) hold NaN for an absent class."""

    mean_iou: float
    mean_accuracy: float
    overall_accuracy: float
    iou: np.ndarray
    accuracy: np.ndarray
    pixels: np.ndarray  # int64 (C,): labelled pixels of each class


def new_confusion(num_classes: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """int64 zeros (C, C + 1): rows are labels, columns predictions; the last column is for predictions of no class."""
    return torch.zeros(num_classes, num_classes + 1, dtype=torch.int64, device=device)


def update(confusion: torch.Tensor, prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Add an image to `confusion` in place; return the image's confusion matrix.

    `prediction` and `label` are integer tensors of the same shape; `label` holds classes and 255, which is ignored. A
    prediction that is not a class of the data set counts as wrong for its label and towards no other class. A GPU is
    not waited for: masks and torch.bincount would wait four times an image.
    """
    n = confusion.shape[0]
    counts = torch.zeros((IGNORE + 1) * (n + 1), dtype=torch.int64, device=label.device)
    unit = torch.ones((), dtype=torch.int64, device=label.device)
    for labels, predictions in zip(label.flatten().split(STRIP), prediction.flatten().split(STRIP), strict=True):
        pairs = labels.int() * (n + 1) + predictions.int().clamp(max=n)
        counts.index_add_(0, pairs, unit.expand(pairs.shape))
    image_confusion = counts.view(IGNORE + 1, n + 1)[:n]
    confusion += image_confusion
    return image_confusion


def mapped(classes: torch.Tensor, to_data_class: torch.Tensor) -> torch.Tensor:
    """The data set's class of each pixel of the model's `classes` uint8 (H, W), by the table uint8 (model classes,)."""
    return torch.cat([to_data_class[part.long()] for part in classes.flatten().split(STRIP)]).view(classes.shape)


def cells(confusion: torch.Tensor) -> np.ndarray:
    """The nonzero entries of a confusion matrix: int64 (n, 3) with label, prediction and pixels."""
    return cells_of([confusion])[0]


def cells_of(confusions: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """`cells` of several matrices, which are fetched from their device together."""
    if not confusions:
        return []
    stacked = torch.stack(list(confusions))
    image, label, prediction = stacked.nonzero(as_tuple=True)
    entries = torch.stack([label, prediction, stacked[image, label, prediction]], dim=1)
    return [part.numpy() for part in entries.cpu().split(image.bincount(minlength=len(stacked)).tolist())]


def compute(confusion: torch.Tensor) -> Scores:
    """Compute the scores of a confusion matrix (C, C + 1)."""
    matrix = confusion.cpu().numpy().astype(np.float64)
    counts = np.diag(matrix), matrix.sum(1), matrix[:, :-1].sum(0)
    iou, accuracy = by_class(*counts)
    return Scores(*map(float, means(*counts)), iou=iou, accuracy=accuracy, pixels=counts[1].astype(np.int64))
