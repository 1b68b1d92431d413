"""Input protocols: how an image becomes a model's input. Compare figures only under the same protocol.

- `aligned-512-v1`: resize to fit 2048x512 at the same aspect ratio, then round both sides up to multiples of 32.
  This is the official evaluation of SegFormer on ADE20K (`AlignedResize` in NVlabs/SegFormer).
- `fixed-HxW-v1`: resize to H x W, whatever the aspect ratio.

Both upsample the logits to the size of the label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from segquant.base.config import ALIGNED_PROTOCOL, FIXED_PROTOCOL, check_protocol
from segquant.base.errors import DataError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation of RGB in [0, 1]
Normalization = tuple[Sequence[float], Sequence[float]]


def resize_steps(protocol: str, width: int, height: int) -> list[tuple[int, int]]:
    """The (width, height) of each resize in order; the last is the size of the model's input."""
    if check_protocol(protocol) != ALIGNED_PROTOCOL:
        fixed_height, fixed_width = map(int, FIXED_PROTOCOL.fullmatch(protocol).groups())
        return [(fixed_width, fixed_height)]
    scale = min(2048 / max(width, height), 512 / min(width, height))
    rescaled = int(width * scale + 0.5), int(height * scale + 0.5)
    return [rescaled, (math.ceil(rescaled[0] / 32) * 32, math.ceil(rescaled[1] / 32) * 32)]


def resize(image: Image.Image, protocol: str, name: str = "an image") -> Image.Image:
    """Resize an image to the size of the model's input, with Pillow's bilinear filter.

    Raises DataError with `name` for an image so narrow that the protocol leaves nothing of a side.
    """
    for size in resize_steps(protocol, *image.size):
        if not all(size):
            raise DataError(
                f"{name} is {image.width}x{image.height}, too narrow for {protocol}, which keeps the ratio: leave it "
                "out, or choose fixed-HxW-v1"
            )
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
    return image


def normalize(image: Image.Image | np.ndarray, normalization: Normalization = IMAGENET) -> torch.Tensor:
    """An RGB image as float32 (3, H, W): (pixels / 255 - mean) / standard deviation."""
    mean, std = (torch.tensor(values)[:, None, None] for values in normalization)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).to(torch.float32) / 255
    return (pixels - mean) / std
