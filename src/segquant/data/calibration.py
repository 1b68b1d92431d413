"""Unlabelled images that a quantizer looks at, as one batch of model inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from PIL import Image

from segquant.data.images import decode_image
from segquant.data.protocols import IMAGENET, Normalization, normalize, resize


def spread(total: int, count: int) -> list[int]:
    """`count` indices below `total`, evenly spread; all of them when there are fewer."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def calibration_batch(rows: Iterable[dict], protocol: str, normalization: Normalization = IMAGENET) -> torch.Tensor:
    """Model inputs float32 (N, 3, H, W) of the images of `rows`; their labels are not looked at.

    Images that the protocol gives another size are brought to the most common one.
    """
    images = [resize(decode_image(row["image"], row["id"]), protocol) for row in rows]
    ((size, _),) = Counter(image.size for image in images).most_common(1)
    fitted = [image if image.size == size else image.resize(size, Image.Resampling.BILINEAR) for image in images]
    return torch.stack([normalize(image, normalization) for image in fitted])
