"""Encoded images and annotations as pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from segquant.base.errors import DataError

# Formats of labels, and compressions of TIFF
_LOSSLESS = {
    "PNG",
    "BMP",
    "GIF",
    "PPM",
    "raw",
    "packbits",
    "tiff_lzw",
    "tiff_deflate",
    "tiff_adobe_deflate",
    "lzma",
    "zstd",
}
IGNORE = 255  # the annotation of pixels that do not count


class Pair(NamedTuple):
    """An image and its label as they are stored, and what a message calls them."""

    id: str
    image: bytes
    label: bytes
    image_name: str
    label_name: str


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image to RGB, as it lies in the file: labels know nothing of EXIF's rotation.

    Grey becomes RGB, alpha is dropped, 16 bits become 8. Raises DataError, naming it, when it is broken.
    """
    with _readable(name, "image"):
        image = _open(data)
        if image.mode.startswith("I;16"):  # convert would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of an image that `decode_image` can read. Raises DataError as it does."""
    with _readable(name, "image"):
        image = _open(data)
        size = image.size
        image.draft("L", (1, 1))  # of a JPEG every byte is looked at, but few pixels are made
        image.load()
        return size


def decode_annotation(data: bytes, name: str = "an annotation") -> np.ndarray:
    """A shard's annotation as uint8 (H, W). Raises DataError, naming it, when it is broken."""
    try:
        return np.array(Image.open(io.BytesIO(data)))
    except Exception as error:  # as in _readable
        raise DataError(f"{name} has no readable label ({error}): make the shards again") from error


def decode_label(data: bytes, name: str) -> np.ndarray:
    """A data set's label as it is stored: values 0 to 255 as uint8 (H, W); a palette's colours do not matter.

    Raises DataError, naming it, when it is broken or cannot hold one class id a pixel without loss.
    """
    with _readable(name, "label"):
        image = Image.open(io.BytesIO(data))
        image.load()
    if image.format not in _LOSSLESS and image.info.get("compression") not in _LOSSLESS:
        raise DataError(f"{name} is a {image.format}, which may change class ids: make labels PNG from their source")
    if image.mode not in ("L", "P", "1"):
        kind = {"I": "32-bit", "F": "32-bit"}.get(image.mode, "16-bit" if image.mode[0] == "I" else image.mode)
        raise DataError(f"{name} is a {kind} image: a label must be 8-bit with one class id a pixel")
    values = np.array(image).astype(np.uint8)
    if image.mode == "L" and image.format == "PNG":  # Pillow stretches 2 and 4 bits of grey to 0..255
        values //= 255 // (2 ** data[24] - 1)  # IHDR's bit depth
    return values


@contextmanager
def _readable(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises a dozen types for broken files
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} is not a readable {what} ({reason}): replace it or take it out") from error


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits a pixel, and no range that could be taken for grey")
    return image
