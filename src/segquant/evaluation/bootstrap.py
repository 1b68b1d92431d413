"""How far figures could have come out otherwise on other images: the paired bootstrap over images.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: percentile intervals. Images are drawn with
replacement, the same ones for both of two results, and the data set's figures are computed from each draw's sums. It
tells of the choice of images, not of the choice of a model or of its training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segquant.base.errors import DataError
from segquant.evaluation.counts import Counts
from segquant.evaluation.means import means

RESAMPLES = 10_000
FEWEST = 20  # images: an interval from fewer is too narrow to be believed
METRICS = ("mean_iou", "mean_accuracy", "overall_accuracy")
_AT_ONCE = 20_000_000  # numbers drawn at a time: 160 MB


def resampled(results: Sequence[Counts], resamples: int = RESAMPLES, seed: int = 0) -> list[np.ndarray]:
    """Of each result METRICS (resamples, 3), a row for each draw of images, the same one for all.

    Raises DataError for results of other images, classes or protocols.
    """
    first, images = results[0], len(results[0].ids)
    if not all(one.alike(first) for one in results):
        raise DataError("the results are not of the same images, labels, classes and protocol: evaluate all alike")
    tables = [np.concatenate(one.by_image(), axis=1).astype(np.float64) for one in results]  # (images, 3 C)
    rng, found = np.random.default_rng(seed), [[] for _ in results]
    chunk = max(1, _AT_ONCE // images)
    for start in range(0, resamples, chunk):
        draws = rng.multinomial(images, np.full(images, 1 / images), min(chunk, resamples - start)).astype(np.float64)
        for table, values in zip(tables, found):
            sums = (draws @ table).reshape(len(draws), 3, -1)
            values.append(np.stack(means(*sums.transpose(1, 0, 2)), axis=1))
    return [np.concatenate(values) for values in found]


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of resampled values (n,)."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(first: Counts, second: Counts, resamples: int = RESAMPLES) -> dict[str, Any]:
    """How two results on the same images differ, as fractions.

    {metric: {first, second, difference (second - first), low, high (its 95 % interval)}, n_images, protocol,
    resamples}.
    Raises DataError for results of other images, classes or protocols.
    """
    draws = np.subtract(*reversed(resampled([first, second], resamples)))
    whole = [means(*(part.sum(0) for part in counts.by_image())) for counts in (first, second)]
    found: dict[str, Any] = {}
    for i, name in enumerate(METRICS):
        a, b = float(whole[0][i]), float(whole[1][i])
        low, high = interval(draws[:, i])
        found[name] = {"first": a, "second": b, "difference": b - a, "low": low, "high": high}
    return {**found, "n_images": len(first.ids), "protocol": first.protocol, "resamples": resamples}
