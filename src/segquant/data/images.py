"""Decode images and labels, with errors that name the file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from segquant.base.errors import DataError

# Image formats and TIFF compressions that keep class ids exactly.
_LOSSLESS = set("PNG BMP GIF PPM raw packbits tiff_lzw tiff_deflate tiff_adobe_deflate lzma zstd".split())
IGNORE = 255  # class id of pixels without a label


class Pair(NamedTuple):
    """An image and its label as encoded bytes, and their names in error messages."""

    id: str
    image: bytes
    label: bytes
    image_name: str
    label_name: str


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image to 8-bit RGB: grey is expanded, alpha dropped, 16 bits reduced to 8.

    EXIF rotation is not applied, because labels have none. Raises DataError with `name` when the image is broken.
    """
    with _readable(name, "image"):
        image = _open(data)
        if image.mode.startswith("I;16"):  # convert would clip at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return image.convert("RGB")


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) of an image. Raises DataError when `decode_image` would."""
    with _readable(name, "image"):
        image = _open(data)
        size = image.size
        image.draft("L", (1, 1))  # reads every byte of a JPEG but decodes few pixels
        image.load()
        return size


def decode_annotation(data: bytes, name: str = "an annotation") -> np.ndarray:
    """Decode the annotation of a shard row to uint8 (H, W). Raises DataError with `name` when it is broken."""
    try:
        return np.array(Image.open(io.BytesIO(data)))
    except Exception as error:  # as in _readable
        raise DataError(f"{name} has no readable label ({error}): run prepare_shards again") from error


def decode_label(data: bytes, name: str) -> np.ndarray:
    """Decode a data set's label to its stored values, uint8 (H, W); for a palette image, the indices.

    Raises DataError with `name` when the label is broken, or its format cannot hold one class id per pixel without
    loss.
    """
    with _readable(name, "label"):
        image = Image.open(io.BytesIO(data))
        image.load()
    if image.format not in _LOSSLESS and image.info.get("compression") not in _LOSSLESS:
        raise DataError(
            f"{name} is a {image.format}, which may change class ids: export the label as PNG from its source"
        )
    if image.mode not in ("L", "P", "1"):
        kind = {"I": "32-bit", "F": "32-bit"}.get(image.mode, "16-bit" if image.mode[0] == "I" else image.mode)
        raise DataError(f"{name} has {kind} pixels: a label must be 8-bit with one class id per pixel")
    values = np.array(image).astype(np.uint8)
    if image.mode == "L" and image.format == "PNG":  # Pillow scales 2-bit and 4-bit grey to 0..255
        values //= 255 // (2 ** data[24] - 1)  # IHDR's bit depth
    return values


@contextmanager
def _readable(name: str, kind: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Pillow raises many types of exception for broken files
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} is not a readable {kind} ({reason}): replace or remove it") from error


def _open(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    if image.mode in ("I", "F"):
        raise ValueError("it has 32 bits per pixel, whose grey range is unknown")
    return image
