"""Mean IoU, mean accuracy and overall accuracy from one confusion matrix over the whole data set.

The semantics are those of Hugging Face's `mean_iou`: pixels are ignored by their label, a class that
neither occurs nor is predicted has no IoU (NaN) and is left out of the mean, and sums run over the
data set, not over images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from segquant.data.images import IGNORE
from segquant.evaluation.means import by_class, means


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1]; the per-class arrays (C,) hold NaN where a class is absent."""

    mean_iou: float
    mean_accuracy: float
    overall_accuracy: float
    iou: np.ndarray
    accuracy: np.ndarray
    pixels: np.ndarray  # labelled pixels of each class


def new_confusion(num_classes: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """int64 (C, C + 1): rows are labels, columns predictions; the last column is of predictions of no class."""
    return torch.zeros(num_classes, num_classes + 1, dtype=torch.int64, device=device)


def update(confusion: torch.Tensor, prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Count one image in place; `prediction` and `label` are integers of one shape, label 255 is ignored.

    A prediction that is no class of the data set is wrong for its label and counts for no other class. Gives the
    image's own confusion.
    """
    n = confusion.shape[0]
    valid = label != IGNORE
    label, prediction = label[valid].long(), prediction[valid].long().clamp(max=n)
    own = torch.bincount(label * (n + 1) + prediction, minlength=n * (n + 1)).reshape(n, n + 1)
    confusion += own
    return own


def cells(confusion: torch.Tensor) -> np.ndarray:
    """int64 (n, 3): label, prediction and pixels of a confusion matrix's n entries that are not zero."""
    where = confusion.nonzero()
    return torch.cat([where, confusion[where[:, 0], where[:, 1], None]], dim=1).cpu().numpy()


def compute(confusion: torch.Tensor) -> Scores:
    """Scores of a confusion matrix."""
    matrix = confusion.cpu().numpy().astype(np.float64)
    counts = np.diag(matrix), matrix.sum(1), matrix[:, :-1].sum(0)
    iou, accuracy = by_class(*counts)
    return Scores(*map(float, means(*counts)), iou=iou, accuracy=accuracy, pixels=counts[1].astype(np.int64))
