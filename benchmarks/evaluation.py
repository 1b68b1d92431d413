"""Compare the evaluation engine with a typical script, on the same photographs in one process.

    python benchmarks/evaluation.py --data FOLDER --split validation
    python benchmarks/evaluation.py --memory          # the engine's peak memory at 200 and at 2,000 images

The plain script uses Hugging Face's image processor, one image at a time, the eager model, F.interpolate to the
label's size, argmax, and the formulas of evaluate's `mean_iou` (numpy histograms of each image), with glibc's default
allocator settings. Engine and script take turns; each turn gives one ratio. `model` is the share of the engine's time
that the forward passes alone take on the same batches.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SegformerImageProcessorPil

from segquant import models
from segquant.base.allocator import keep_freed_memory
from segquant.base.config import Eval
from segquant.base.entry import run
from segquant.data.images import IGNORE, decode_annotation, decode_image
from segquant.data.shards import open_shards, shard_rows, write_shards
from segquant.data.sources import open_source
from segquant.evaluation.loop import evaluate
from segquant.evaluation.predict import forward, prepared
from segquant.evaluation.upsample import class_map


def plain(model: nn.Module, rows: list[dict], size: int, num_labels: int) -> float:
    """Mean IoU by the plain script."""
    keep_freed_memory(False)  # the allocator's default
    processor = SegformerImageProcessorPil(do_reduce_labels=False, size={"height": size, "width": size})
    device = next(model.parameters()).device
    intersect, predicted, labelled = (np.zeros(num_labels, np.float64) for _ in range(3))
    for row in rows:
        inputs = processor(decode_image(row["image"], row["id"]), return_tensors="pt").to(device)
        label = decode_annotation(row["annotation"])
        with torch.no_grad():
            logits = model(**inputs).logits
        upsampled = F.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
        prediction = upsampled.argmax(1)[0].cpu().numpy()
        # https://huggingface.co/spaces/evaluate-metric/mean_iou: intersect_and_union
        mask = label != IGNORE
        prediction, label = prediction[mask], label[mask]
        bins = {"bins": num_labels, "range": (0, num_labels - 1)}
        intersect += np.histogram(prediction[prediction == label], **bins)[0]
        predicted += np.histogram(prediction, **bins)[0]
        labelled += np.histogram(label, **bins)[0]
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(intersect / (predicted + labelled - intersect)))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def spread(values: list[float], unit: str = "") -> str:
    return f"{statistics.median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def compare(a: argparse.Namespace) -> None:
    source = open_source(a.data, a.split, a.limit)
    rows = [source[i] for i in range(len(source))]
    model = models.load(a.model).to(models.device(a.device))
    device, classes = next(model.parameters()).device, len(source.classes)
    settings = Eval(batch_size=a.batch_size, device=a.device, dtype=a.dtype, compile=a.compile, workers=a.workers)
    engine = prepared(copy.deepcopy(model), settings)
    protocol = f"fixed-{a.size}x{a.size}-v1"

    def ours() -> float:
        keep_freed_memory()
        result = evaluate(engine, rows, len(rows), num_classes=classes, protocol=protocol, settings=settings)
        return result.scores.mean_iou

    inputs = torch.zeros(a.batch_size, 3, a.size, a.size)
    full, rest = divmod(len(rows), a.batch_size)

    def forward_only() -> float:
        for count in [a.batch_size] * full + [rest] * (rest > 0):
            forward(engine, inputs[:count], a.dtype)
        return 0.0

    plain(model, rows[:2], a.size, classes), ours(), forward_only()  # warm up
    turns = []
    for _ in range(a.rounds):
        slow, expected = timed(lambda: plain(model, rows, a.size, classes))
        fast, actual = timed(ours)
        alone, _ = timed(forward_only)
        turns.append((slow, fast, alone))
        difference = abs(expected - actual)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{len(rows)} images of {a.data} ({a.split}), {a.model}, {protocol}, {a.dtype}, {a.rounds} turns, on {name}")
    print(f"engine: batch {a.batch_size}, {'compiled' if a.compile else 'eager'}")
    print(f"plain   {spread([len(rows) / slow for slow, _, _ in turns])} images/s")
    print(f"engine  {spread([len(rows) / fast for _, fast, _ in turns])} images/s")
    print(f"ratio   {spread([slow / fast for slow, fast, _ in turns])}")
    print(f"model   {spread([100 * alone / fast for _, fast, alone in turns], ' %')} of the engine's time")
    print(f"mIoU    plain {expected:.7f}, engine {actual:.7f}, difference {difference:.1e}")
    upsampling(model, rows[: a.rounds], a.size)


def two_calls(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, (512, 683), mode="bilinear", align_corners=False).argmax(1)[0]


def upsampling(model: nn.Module, rows: list[dict], size: int) -> None:
    """Compare class_map with F.interpolate and argmax, to 512x683, with the default allocator settings."""
    keep_freed_memory(False)
    processor = SegformerImageProcessorPil(do_reduce_labels=False, size={"height": size, "width": size})
    ratios, differing = [], 0
    for row in rows:
        logits = forward(model, processor(decode_image(row["image"], "x"), return_tensors="pt")["pixel_values"])
        for _ in range(5):
            slow, expected = timed(partial(two_calls, logits))
            fast, actual = timed(partial(class_map, logits[0], 512, 683))
            ratios.append(slow / fast)
        differing += int((expected != actual).sum())
    shape = "x".join(map(str, logits.shape[1:]))
    print(f"upsample and argmax, {shape} to 512x683: {spread(ratios)} x faster, {differing} pixels differ")


def memory(a: argparse.Namespace) -> None:
    """Print the peak memory of evaluations of prepared shards of scenes, each in a fresh process."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in (200, 2000):
            shards = Path(folder) / str(count)
            write_shards({"validation": open_source("scenes", "validation", count)}, shards)
            command = [sys.executable, __file__, "--peak", str(shards), "--model", a.model, "--size", str(a.size)]
            process = subprocess.run([*command, "--device", a.device], check=True, stdout=subprocess.PIPE, text=True)
            peaks[count] = float(process.stdout)
            print(f"{count} images: peak {peaks[count]:.0f} MB", flush=True)
    print(f"ratio {peaks[2000] / peaks[200]:.3f}")


def peak(a: argparse.Namespace) -> None:
    """Evaluate the shards in `a.peak` and print this process's peak memory in MB."""
    settings = Eval(batch_size=a.batch_size, device=a.device, workers=a.workers)
    model = prepared(models.load(a.model).to(models.device(a.device)), settings)
    shards = open_shards(a.peak, "validation")
    rows = (row for shard in shards for row in shard_rows(shard))
    total = sum(shard.rows for shard in shards)
    evaluate(model, rows, total, num_classes=150, protocol=f"fixed-{a.size}x{a.size}-v1", settings=settings)
    status = Path("/proc/self/status").read_text().splitlines()
    print(int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/scenes-b0")
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=32, help="images")
    parser.add_argument("--size", type=int, default=512, help="the model's input, pixels a side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=Eval.batch_size)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    a = parser.parse_args()
    (peak if a.peak else memory if a.memory else compare)(a)


if __name__ == "__main__":
    run(main)
