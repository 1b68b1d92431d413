"""Encoded images and annotations as pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from segquant.errors import DataError

IGNORE = 255  # the annotation of pixels that do not count


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image to RGB. Raises DataError, naming it, when it is broken."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Exception as error:  # Pillow raises a dozen types for broken files
        raise DataError(f"{name} is not a readable image ({error}): replace it or take it out") from error


def decode_annotation(data: bytes, name: str = "an annotation") -> np.ndarray:
    """A shard's annotation as uint8 (H, W). Raises DataError, naming it, when it is broken."""
    try:
        return np.array(Image.open(io.BytesIO(data)))
    except Exception as error:  # as above
        raise DataError(f"{name} has no readable label ({error}): make the shards again") from error
