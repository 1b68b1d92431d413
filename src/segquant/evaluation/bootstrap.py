"""Paired bootstrap over images: how much figures would vary with a different choice of images.

Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Each draw takes images
with replacement, the same images for all results, and computes the data set's figures from the sums of their counts.
The intervals cover the choice of images, but not that of the model or its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segquant.base.errors import DataError
from segquant.evaluation.counts import Counts
from segquant.evaluation.means import means

RESAMPLES = 10_000
FEWEST = 20  # images: with fewer, intervals are too narrow
METRICS = ("mean_iou", "mean_accuracy", "overall_accuracy")
_CHUNK = 20_000_000  # counts drawn at a time: 160 MB


def resampled(results: Sequence[Counts], resamples: int = RESAMPLES, seed: int = 0) -> list[np.ndarray]:
    """Recompute METRICS on random draws of images: for each result an array (resamples, 3), one row per draw.

    All results share the draws. Raises DataError when results differ in images, labels, classes or protocol.
    """
    first, images = results[0], len(results[0].ids)
    if not all(result.alike(first) for result in results):
        raise DataError("the results differ in images, labels, classes or protocol: evaluate all on the same data")
    tables = [np.concatenate(result.by_image(), axis=1).astype(np.float64) for result in results]  # (images, 3 C)
    rng, figures = np.random.default_rng(seed), [[] for _ in results]
    chunk = max(1, _CHUNK // images)
    for start in range(0, resamples, chunk):
        draws = rng.multinomial(images, np.full(images, 1 / images), min(chunk, resamples - start)).astype(np.float64)
        for table, values in zip(tables, figures):
            sums = (draws @ table).reshape(len(draws), 3, -1)
            values.append(np.stack(means(*sums.transpose(1, 0, 2)), axis=1))
    return [np.concatenate(values) for values in figures]


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values (n,)."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(first: Counts, second: Counts, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Compare two results on the same images; all figures are fractions in [0, 1].

    Returns {metric: {first, second, difference (second - first), low, high (the difference's 95 % interval)},
    n_images, protocol, resamples}. Raises DataError when the results differ in images, labels, classes or protocol.
    """
    draws = np.subtract(*reversed(resampled([first, second], resamples)))
    whole = [means(*(part.sum(0) for part in counts.by_image())) for counts in (first, second)]
    comparison: dict[str, Any] = {}
    for i, name in enumerate(METRICS):
        a, b = float(whole[0][i]), float(whole[1][i])
        low, high = interval(draws[:, i])
        comparison[name] = {"first": a, "second": b, "difference": b - a, "low": low, "high": high}
    return {**comparison, "n_images": len(first.ids), "protocol": first.protocol, "resamples": resamples}
