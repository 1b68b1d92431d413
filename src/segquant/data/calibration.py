"""Calibration images as one batch of model inputs; their labels are not used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from segquant.data.images import decode_image
from segquant.data.preprocessing import IMAGENET, Preprocessing
from segquant.data.protocols import resize


def spread(total: int, count: int) -> list[int]:
    """`count` evenly spread indices below `total`; all `total` indices when `count` is larger."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def calibration_batch(rows: Iterable[dict], protocol: str, preprocessing: Preprocessing = IMAGENET) -> torch.Tensor:
    """Turn the images of `rows` into model inputs, float32 (N, 3, H, W).

    Images whose size differs after the protocol's resize are resized to the most common size.
    """
    images = [resize(decode_image(row["image"], row["id"]), protocol, preprocessing.filter, row["id"]) for row in rows]
    ((size, _),) = Counter(image.size for image in images).most_common(1)
    resized = [image if image.size == size else image.resize(size, preprocessing.filter) for image in images]
    return torch.stack([preprocessing(image) for image in resized])
