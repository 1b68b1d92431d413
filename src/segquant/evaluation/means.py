"""IoU and accuracy, by class and on average, from pixel counts (numpy only)."""

from __future__ import annotations

import warnings

import numpy as np


def by_class(hit: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy (..., C) in [0, 1], from counts (..., C) of correct, labelled and predicted pixels.

    A class that is absent has NaN.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return hit / (labelled + predicted - hit), hit / labelled


def means(hit: np.ndarray, labelled: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean IoU, mean accuracy and overall accuracy (...,) from the counts of `by_class`; the means skip NaN classes."""
    iou, accuracy = by_class(hit, labelled, predicted)
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.filterwarnings("ignore", "Mean of empty slice")
        return np.nanmean(iou, -1), np.nanmean(accuracy, -1), hit.sum(-1) / labelled.sum(-1)
