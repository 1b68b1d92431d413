"""From rows to class maps: decode and resize in threads beside the forward pass, then upsample and argmax."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch
from torch import nn

from segquant.base.allocator import keep_freed_memory
from segquant.base.config import Eval
from segquant.base.errors import DataError, SegquantError
from segquant.data.images import decode_image
from segquant.data.protocols import IMAGENET, Normalization, normalize, resize, resize_steps
from segquant.evaluation.upsample import class_map
from segquant.quant.head import fuse_early

log = logging.getLogger(__name__)
_WINDOW = 64  # rows that are looked at together when images of one input size are put into batches


@dataclass(frozen=True)
class Prediction:
    """`index` of the row among its fellows; `classes` uint8 (H, W) on the model's device, None with an `error`."""

    index: int
    row: dict
    classes: torch.Tensor | None
    beside: Any = None
    error: DataError | None = None


@torch.inference_mode()
def forward(model: nn.Module, inputs: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    """Logits (B, C, h, w) of inputs (B, 3, H, W), which are cast to the model's own floating type.

    A `dtype` other than float32 is that of autocast.
    """
    parameter = next(model.parameters())
    with torch.autocast(parameter.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        return model(inputs.to(parameter.device, parameter.dtype)).logits


def prepared(model: nn.Module, settings: Eval) -> nn.Module:
    """`model`, changed in place to give its logits sooner, and this process ready to run it batch after batch.

    The decode head fuses early, and settings may ask for compilation. On CUDA PyTorch stays within
    `max_gpu_memory_gb` from here on, on a CPU freed memory is kept for the next batch.
    """
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":  # CUDA's own context is outside of what PyTorch allots: some 0.6 GB
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (settings.max_gpu_memory_gb - 1) * 1e9 / total), device)
    fuse_early(model)
    return torch.compile(model) if settings.compile else model


def predict(
    model: nn.Module,
    rows: Iterable[dict],
    protocol: str,
    settings: Eval,
    normalization: Normalization = IMAGENET,
    beside: Callable[[int, dict, str], Any] | None = None,
    origin: str = "",
) -> Iterator[Prediction]:
    """Predict every row; images of one input size share batches, so rows come in another order, the same each time.

    `beside` (index, row, name) is called in the threads too, for what else has to be decoded. A broken row, named
    after `origin`, raises DataError; with on_error=skip it comes out with its error.
    """

    def decode(task: tuple[int, int, dict]) -> tuple[int, Prediction, torch.Tensor | None]:
        batch, index, row = task
        name = f"{origin} row {index} ({row['id']})" if origin else row["id"]
        try:
            image = decode_image(row["image"], name)
            if image.size != (row["width"], row["height"]):
                size = f"{row['width']}x{row['height']}"
                raise DataError(
                    f"{name} is {image.width}x{image.height} but its row says {size}: make the shards again"
                )
            pixels = normalize(resize(image, protocol), normalization)
            return batch, Prediction(index, row, None, beside(index, row, name) if beside else None), pixels
        except DataError as error:
            if settings.on_error != "skip":
                raise
            return batch, Prediction(index, row, None, error=error), None

    limit = [settings.batch_size]
    tasks = _batches(rows, protocol, settings.batch_size)
    workers = settings.workers
    if workers is None:  # on a CPU they would only take the model's cores: 10 % slower with two of two
        workers = 0 if next(model.parameters()).device.type == "cpu" else 4
    decoded = _ahead(decode, tasks, workers, settings.batch_size + workers)
    for _, members in groupby(decoded, key=lambda found: found[0]):
        whole, inputs = [], []
        for _, found, pixels in members:
            if pixels is None:
                yield found
            else:
                whole.append(found)
                inputs.append(pixels)
        for found, logits in zip(whole, _logits(model, inputs, settings.dtype, limit)):
            classes = class_map(logits, found.row["height"], found.row["width"])
            yield Prediction(found.index, found.row, classes, found.beside)


def _batches(rows: Iterable[dict], protocol: str, size: int) -> Iterator[tuple[int, int, dict]]:
    """Number of the batch, index and row, for rows of one input size together within each window."""
    batch, numbered = 0, enumerate(rows)
    while window := list(islice(numbered, _WINDOW)):
        alike: dict[tuple[int, int], list[tuple[int, dict]]] = {}
        for index, row in window:
            alike.setdefault(resize_steps(protocol, row["width"], row["height"])[-1], []).append((index, row))
        for group in alike.values():
            for place, (index, row) in enumerate(group):
                yield batch + place // size, index, row
            batch += -(-len(group) // size)


def _ahead(call: Callable, items: Iterable, workers: int, ahead: int) -> Iterator:
    """`call` of each item, in order, made up to `ahead` items early in `workers` threads (Pillow frees the GIL)."""
    if not workers:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque = deque()
        try:
            for item in items:
                waiting.append(pool.submit(call, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _logits(model: nn.Module, inputs: list[torch.Tensor], dtype: str, limit: list[int]) -> Iterator[torch.Tensor]:
    """Logits (C, h, w) of each input, at most `limit[0]` at a time, which is halved when memory runs out."""
    start = 0
    while start < len(inputs):
        chunk = inputs[start : start + limit[0]]
        try:
            logits = forward(model, torch.stack(chunk), dtype)
        except torch.OutOfMemoryError as error:
            if len(chunk) == 1:
                raise SegquantError(
                    "one image does not fit into the GPU's memory: raise eval.max_gpu_memory_gb"
                ) from error
            torch.cuda.empty_cache()
            limit[0] = len(chunk) // 2
            log.warning("out of GPU memory with %d images at a time: going on with %d", len(chunk), limit[0])
            continue
        yield from logits
        start += len(chunk)
