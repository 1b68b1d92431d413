"""From rows to class maps: decode, resize, forward, upsample, argmax."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from segquant.data.images import decode_image
from segquant.data.protocols import IMAGENET, Normalization, normalize, resize


def class_map(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Argmax of logits (C, h, w) upsampled bilinearly (align_corners=False): uint8 (height, width).

    Only classes that can win somewhere are upsampled. Every output is a convex combination of the four
    corners of one cell, so a class whose highest corner lies below the best class's lowest one cannot win in
    that cell; one that can win in no cell is left out. The same class map for a fraction of the memory.
    """
    logits = logits[None].float()
    corners = F.pad(logits, (0, 1, 0, 1), mode="replicate")
    highest, lowest = F.max_pool2d(corners, 2, 1), -F.max_pool2d(-corners, 2, 1)
    may_win = (highest >= lowest.amax(1, keepdim=True)).flatten(2).any(2)[0].nonzero()[:, 0]
    upsampled = F.interpolate(logits[:, may_win], (height, width), mode="bilinear", align_corners=False)
    return may_win[upsampled[0].argmax(0)].to(torch.uint8)


@torch.inference_mode()
def forward(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Logits (B, C, h, w) of inputs (B, 3, H, W), which are cast to the model's own floating type."""
    parameter = next(model.parameters())
    return model(inputs.to(parameter.device, parameter.dtype)).logits


def predict(
    model: nn.Module, rows: Iterable[dict], protocol: str, batch_size: int, normalization: Normalization = IMAGENET
) -> Iterator[tuple[dict, np.ndarray]]:
    """Yield each row with its class map uint8 (height, width), in order.

    Neighbouring images of one input size share a batch. Raises DataError for a broken image.
    """
    batch: list[tuple[dict, torch.Tensor]] = []
    for row in rows:
        pixels = normalize(resize(decode_image(row["image"], row["id"]), protocol), normalization)
        if batch and (len(batch) == batch_size or batch[0][1].shape != pixels.shape):
            yield from _predict_batch(model, batch)
            batch = []
        batch.append((row, pixels))
    if batch:
        yield from _predict_batch(model, batch)


def _predict_batch(model: nn.Module, batch: list[tuple[dict, torch.Tensor]]) -> Iterator[tuple[dict, np.ndarray]]:
    logits = forward(model, torch.stack([pixels for _, pixels in batch]))
    for (row, _), one in zip(batch, logits):
        yield row, class_map(one, row["height"], row["width"]).cpu().numpy()
