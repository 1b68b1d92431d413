"""Input protocols: how an image becomes a model's input. Compare figures only under the same protocol.

- `aligned-512-v1`: resize to fit 2048x512 at the same aspect ratio, then round both sides up to multiples of 32.
  This is the official evaluation of SegFormer on ADE20K (`AlignedResize` in NVlabs/SegFormer).
- `fixed-HxW-v1`: resize to H x W, whatever the aspect ratio.

Both upsample the logits to the size of the label.
"""

from __future__ import annotations

import math

import torch
from PIL import Image

from segquant.base.config import ALIGNED_PROTOCOL, FIXED_PROTOCOL, check_protocol
from segquant.base.errors import DataError
from segquant.data.preprocessing import IMAGENET, Preprocessing


def resize_steps(protocol: str, width: int, height: int) -> list[tuple[int, int]]:
    """The (width, height) of each resize in order; the last is the size of the model's input."""
    if check_protocol(protocol) != ALIGNED_PROTOCOL:
        fixed_height, fixed_width = map(int, FIXED_PROTOCOL.fullmatch(protocol).groups())
        return [(fixed_width, fixed_height)]
    scale = min(2048 / max(width, height), 512 / min(width, height))
    rescaled = int(width * scale + 0.5), int(height * scale + 0.5)
    return [rescaled, (math.ceil(rescaled[0] / 32) * 32, math.ceil(rescaled[1] / 32) * 32)]


def resize(
    image: Image.Image,
    protocol: str,
    resample: Image.Resampling = Image.Resampling.BILINEAR,
    name: str = "an image",
) -> Image.Image:
    """Resize an image to the size of the model's input.

    Raises DataError with `name` for an image so narrow that the protocol leaves nothing of a side.
    """
    for size in resize_steps(protocol, *image.size):
        if not all(size):
            raise DataError(
                f"{name} is {image.width}x{image.height}, too narrow for {protocol}, which keeps the ratio: leave it "
                "out, or choose fixed-HxW-v1"
            )
        if image.size != size:
            image = image.resize(size, resample)
    return image


def model_input(
    image: Image.Image, protocol: str, preprocessing: Preprocessing = IMAGENET, name: str = "an image"
) -> torch.Tensor:
    """An RGB image as the model's input, float32 (3, H, W): sizes are the protocol's, everything else the model's.

    Raises DataError as `resize`.
    """
    return preprocessing(resize(image, protocol, preprocessing.filter, name))
