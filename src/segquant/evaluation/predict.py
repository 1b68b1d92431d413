"""Predict class maps: decode and resize in threads during the forward pass, then upsample and take the argmax."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from segquant.base.allocator import keep_freed_memory
from segquant.base.config import Eval
from segquant.base.errors import DataError, SegquantError
from segquant.data.images import decode_image
from segquant.data.preprocessing import IMAGENET, Preprocessing
from segquant.data.protocols import model_input, resize_steps
from segquant.evaluation.upsample import class_map
from segquant.quant.head import fuse_early
from segquant.quant.tensors import finite

log = logging.getLogger(__name__)
_WINDOW = 64  # consecutive rows among which images of the same input size are batched
_HELD = 1 << 28  # encoded bytes of a window: fewer rows where the photographs are large


@dataclass(frozen=True)
class Prediction:
    """The class map of a row: `index` is the row's number, `extra` the result of `predict`'s argument of that name.

    `classes` is uint8 (H, W) on the model's device, and None with an `error`.
    """

    index: int
    row: dict
    classes: torch.Tensor | None
    extra: Any = None
    error: DataError | None = None


@torch.inference_mode()
def forward(model: nn.Module, inputs: torch.Tensor, dtype: str = "float32") -> torch.Tensor:
    """Logits (B, C, h, w) of inputs (B, 3, H, W), which are cast to the dtype of the model's parameters.

    Any `dtype` but float32 turns autocast on with that dtype.
    """
    parameter = next(model.parameters())
    with torch.autocast(parameter.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
        return model(inputs.to(parameter.device, parameter.dtype)).logits


def prepared(model: nn.Module, settings: Eval) -> nn.Module:
    """Speed up `model` and prepare this process to run it batch after batch; return the model to call.

    The decode head is replaced in place (`fuse_early`), and the settings can turn on compilation. On CUDA, PyTorch is
    limited to `max_gpu_memory_gb` from now on; on a CPU, the process keeps freed memory for the next batch.
    """
    device = next(model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    if device.type == "cuda":  # the CUDA context takes about 0.6 GB outside PyTorch's allocator
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (settings.max_gpu_memory_gb - 1) * 1e9 / total), device)
    fuse_early(model)
    return torch.compile(model) if settings.compile else model


def predict(
    model: nn.Module,
    rows: Iterable[dict],
    protocol: str,
    settings: Eval,
    preprocessing: Preprocessing = IMAGENET,
    extra: Callable[[int, dict, str], Any] | None = None,
    origin: str = "",
) -> Iterator[Prediction]:
    """Predict every row. Images of the same input size share batches, which changes the order, always in the same way.

    The threads also call `extra` (index, row, name), to decode a label for example. A broken row raises DataError,
    which begins with `origin`; with on_error=skip, the row's Prediction holds the error instead.
    """

    def decode(task: tuple[int, int, dict]) -> tuple[int, Prediction, torch.Tensor | None]:
        batch, index, row = task
        name = f"{origin} row {index} ({row['id']})" if origin else row["id"]
        try:
            image = decode_image(row["image"], name)
            if image.size != (row["width"], row["height"]):
                actual, expected = f"{image.width}x{image.height}", f"{row['width']}x{row['height']}"
                raise DataError(f"{name} is {actual} but its row says {expected}: make the shards again")
            pixels = model_input(image, protocol, preprocessing, name)
            del image  # of a large photograph hundreds of megabytes, before its label is decoded
            return batch, Prediction(index, row, None, extra(index, row, name) if extra else None), pixels
        except DataError as error:
            if settings.on_error != "skip":
                raise
            return batch, Prediction(index, row, None, error=error), None

    limit = [settings.batch_size]
    tasks = _batches(rows, protocol, settings.batch_size)
    workers = settings.workers
    if workers is None:  # on a CPU, threads compete with the model for cores: two threads on two cores cost 10 %
        workers = 0 if next(model.parameters()).device.type == "cpu" else 4
    decoded = _ahead(decode, tasks, workers, settings.batch_size + workers)
    for _, batch in groupby(decoded, key=lambda item: item[0]):
        readable, inputs = [], []
        for _, prediction, pixels in batch:
            if pixels is None:
                yield prediction
            else:
                readable.append(prediction)
                inputs.append(pixels)
        for prediction, logits in zip(readable, _logits(model, inputs, settings.dtype, limit)):
            classes = class_map(logits, prediction.row["height"], prediction.row["width"])
            yield replace(prediction, classes=classes)


def _batches(rows: Iterable[dict], protocol: str, size: int) -> Iterator[tuple[int, int, dict]]:
    """Yield (batch number, index, row); in each window of rows, a batch takes rows of the same input size."""
    batch = 0
    for window in _windows(rows):
        by_size: dict[tuple[int, int], list[tuple[int, dict]]] = {}
        for index, row in window:
            by_size.setdefault(resize_steps(protocol, row["width"], row["height"])[-1], []).append((index, row))
        for group in by_size.values():
            for position, (index, row) in enumerate(group):
                yield batch + position // size, index, row
            batch += -(-len(group) // size)


def _windows(rows: Iterable[dict]) -> Iterator[list[tuple[int, dict]]]:
    """Consecutive (index, row), up to _WINDOW of them, and no more once they hold _HELD bytes."""
    window, held = [], 0
    for index, row in enumerate(rows):
        window.append((index, row))
        held += len(row["image"]) + len(row.get("annotation") or b"")
        if len(window) == _WINDOW or held >= _HELD:
            yield window
            window, held = [], 0
    if window:
        yield window


def _ahead(call: Callable, items: Iterable, workers: int, ahead: int) -> Iterator:
    """Yield `call(item)` in order, computed up to `ahead` items early by `workers` threads; Pillow frees the GIL."""
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
    """Yield logits (C, h, w) of each input; run at most `limit[0]` at a time, and halve that when memory runs out.

    Inputs are stacked on the model's device: stacking on the CPU wakes PyTorch's threads, which then spin on the cores
    that the decoding threads need (127 images/s instead of 212 with an H200 and 16 cores).
    """
    device, start = next(model.parameters()).device, 0
    while start < len(inputs):
        chunk = inputs[start : start + limit[0]]
        try:
            logits = finite(forward(model, torch.stack([image.to(device) for image in chunk]), dtype), "the model")
        except torch.OutOfMemoryError as error:
            if len(chunk) == 1:
                message = "one image does not fit into GPU memory: raise eval.max_gpu_memory_gb"
                raise SegquantError(message) from error
            torch.cuda.empty_cache()
            limit[0] = len(chunk) // 2
            log.warning("out of GPU memory with %d images at a time: continuing with %d", len(chunk), limit[0])
            continue
        yield from logits
        start += len(chunk)
