"""Decode images and labels, with errors that name the file."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from segquant.base.errors import DataError

# Image formats and TIFF compressions that keep class ids exactly.
_LOSSLESS = set("PNG BMP GIF PPM raw packbits tiff_lzw tiff_deflate tiff_adobe_deflate lzma zstd".split())
IGNORE = 255  # class id of pixels without a label
_OPENING = threading.Lock()
STRIP = 1 << 22  # pixels that a step holds in wider numbers: 32 MB of int64


class Photo(NamedTuple):
    """An image as encoded bytes, and its name in error messages."""

    id: str
    image: bytes
    image_name: str


class Pair(NamedTuple):
    """An image and its label as encoded bytes, and their names in error messages."""

    id: str
    image: bytes
    label: bytes
    image_name: str
    label_name: str


def strips(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Views of consecutive rows of `pixels` (H, W, ...), together all of them: wider copies of a whole photograph of
    100 million pixels would take gigabytes."""
    rows = max(1, STRIP // max(1, pixels.shape[1]))
    for start in range(0, len(pixels), rows):
        yield pixels[start : start + rows]


def histogram(ids: np.ndarray) -> np.ndarray:
    """How many pixels of ids uint8 (H, W) have each value: int64 (256,)."""
    return sum((np.bincount(strip.ravel(), minlength=256) for strip in strips(ids)), np.zeros(256, np.int64))


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode an image to 8-bit RGB: grey is expanded, alpha dropped, 16 bits reduced to 8.

    EXIF rotation is not applied, because labels have none. The number of pixels was checked when the image became a
    row (`image_size`). Raises DataError with `name` when the image is broken.
    """
    with _readable(name, "image"):
        return as_rgb(_open(data))


def as_rgb(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB, of 16 bits the upper eight."""
    if image.mode.startswith("I;16"):  # convert would clip at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def image_size(data: bytes, name: str, max_pixels: int, labelled: bool = False) -> tuple[int, int]:
    """(width, height) of an image. Raises DataError when `decode_image` would, for more than `max_pixels`, and where it
    is `labelled` for a TIFF that Pillow turns as it decodes."""
    with _readable(name, "image"):
        image = _open(data, name, max_pixels)
        if labelled and (turned := _turned(image)):
            raise DataError(f"{name} is {turned}, but labels are not turned: save it as an 8-bit PNG")
        size = image.size
        image.draft("L", (1, 1))  # reads every byte of a JPEG but decodes few pixels
        image.load()
        return image.size if image.format == "TIFF" else size  # Pillow turns a TIFF as it loads


def decode_annotation(data: bytes, name: str = "an annotation") -> np.ndarray:
    """Decode the annotation of a shard row to uint8 (H, W). Raises DataError with `name` when it is broken."""
    try:
        label = np.array(open_unlimited(data))
    except Exception as error:  # as in _readable
        raise DataError(f"{name} has no readable label ({error}): run prepare_shards again") from error
    if label.dtype != np.uint8:
        raise DataError(f"{name} has a label of {label.dtype}, not uint8: run prepare_shards again")
    return label


def decode_label(data: bytes, name: str, max_pixels: int, colors: bool = False) -> np.ndarray:
    """Decode a data set's label to its stored values, uint8 (H, W); for a palette image, the indices.

    With `colors` to its colours, uint8 (H, W, 3); for a palette image, the palette's. Raises DataError with `name` when
    the label is broken or has more than `max_pixels`, or its format cannot hold one class per pixel without loss.
    """
    with _readable(name, "label"):
        image = _open(data, name, max_pixels, check_range=False)
        changed = _changed(image, data, colors)
        pages = getattr(image, "n_frames", 1)
        image.load()
    if pages > 1:
        raise DataError(f"{name} has {pages} pages, of which one would be read: save the one with class ids as PNG")
    if changed:
        raise DataError(f"{name} is {changed}, so that its values are not certain: save it as an 8-bit PNG")
    if image.format not in _LOSSLESS and image.info.get("compression") not in _LOSSLESS:
        raise DataError(
            f"{name} is a {image.format}, which may change class ids: export the label as PNG from its source"
        )
    if colors and image.mode == "P":
        highest, count = image.getextrema()[1], len(image.palette.palette) // len(image.palette.mode)
        if highest >= count:
            raise DataError(
                f"{name} has the index {highest}, but its palette has {count} colours: map indices by data.label_values"
            )
    if colors and image.mode in ("L", "P", "1", "RGB", "RGBA"):
        return np.array(image.convert("RGB"))
    if image.mode not in ("L", "P", "1"):
        kind = {"I": "32-bit", "F": "32-bit"}.get(image.mode, "16-bit" if image.mode[0] == "I" else image.mode)
        raise DataError(
            f"{name} has {kind} pixels: a label must be 8-bit with one class id per pixel"
            + (", or its colours must stand in data.label_values" if image.mode in ("RGB", "RGBA") else "")
        )
    if image.mode == "1":  # whose bytes in an array are 1 or 255, by the version of Pillow
        return np.array(image.convert("L")) // 255
    values = np.array(image)
    if image.mode == "L" and image.format == "PNG":  # Pillow scales 2-bit and 4-bit grey to 0..255
        values //= 255 // (2 ** data[24] - 1)  # IHDR's bit depth
    return values


def _changed(image: Image.Image, data: bytes, colors: bool) -> str | None:
    """What an image is that Pillow decodes to other values than the stored ones, or turned; with `colors`, to other
    colours."""
    if image.format == "PPM":
        highest = image.tile[0].args[1] if isinstance(image.tile[0].args, tuple) else 255
        if highest != 255 and image.mode != "1":
            return f"a PNM whose highest value is {highest}"
        return "a PBM, where 1 is black" if image.mode == "1" and not colors else None
    if image.format == "PNG" and colors and data[24] == 16:  # IHDR's bit depth
        return "a PNG of 16 bits a channel"
    if image.format != "TIFF" or colors:
        return _turned(image)
    if _white_is_0(image):
        return "a TIFF where 0 is white"
    bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0]
    return f"a TIFF of {bits}-bit grey" if image.mode == "L" and bits < 8 else _turned(image)


def _white_is_0(image: Image.Image) -> bool:
    """Whether a TIFF stores white as 0, which Pillow takes for granted where the tag is missing."""
    return image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0


def _turned(image: Image.Image) -> str | None:
    turned = image.format == "TIFF" and image.tag_v2.get(ExifTags.Base.Orientation, 1) not in (0, 1)
    return f"a TIFF with orientation {image.tag_v2[ExifTags.Base.Orientation]}" if turned else None


def open_unlimited(data: bytes) -> Image.Image:
    """Open an encoded image of any number of pixels."""
    with _OPENING:  # Pillow's limit is a variable of its module, which it reads while it opens
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _readable(name: str, kind: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # Pillow raises many types of exception for broken files
        reason = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        raise DataError(f"{name} is not a readable {kind} ({reason}): replace or remove it") from error


def _bmp_bits(data: bytes) -> int:
    """The bits of a pixel, which stand elsewhere in the short header of OS/2."""
    at = 24 if data[14] == 12 else 28
    return int.from_bytes(data[at : at + 2], "little")


def _open(data: bytes, name: str = "", max_pixels: int | None = None, check_range: bool = True) -> Image.Image:
    image = open_unlimited(data)
    if max_pixels and image.width * image.height > max_pixels:
        raise DataError(
            f"{name} has {image.width}x{image.height} pixels, more than data.max_pixels, {max_pixels}: raise that, or "
            "replace or remove the file"
        )
    if image.format == "TIFF" and image.mode[:2] == "I;" and _white_is_0(image):
        raise ValueError("it is a TIFF of 16-bit grey where 0 is white: save it as an 8-bit PNG")
    if image.format == "BMP" and image.mode in ("1", "L") and _bmp_bits(data) != {"1": 1, "L": 8}[image.mode]:
        raise ValueError("it is a BMP with a palette of greys, whose bits Pillow counts wrong: save it as PNG")
    if check_range and image.mode in ("I", "F"):
        raise ValueError("it has 32 bits per pixel, whose grey range is unknown")
    return image
