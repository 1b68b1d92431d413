"""Latency, memory and load time of one artifact, beside float32 in the same process.

Run as `python -m segquant.evaluation.speed` so that the process is fresh: memory is this artifact's own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from segquant import models
from segquant.config import Speed, build
from segquant.entry import run
from segquant.errors import UnavailableError
from segquant.evaluation.predict import forward
from segquant.files import write_json
from segquant.quant.artifacts import load_artifact, load_quantized

MIN_RUNS = 3  # fewer pairs than this give no spread


def measure(artifact: str | Path, float32: str | Path, speed: Speed, device: torch.device) -> dict[str, Any]:
    """Measure `artifact`, then time it and the float32 artifact in turn, A B A B.

    Gives the content of metrics/speed/METHOD.json. Times are of the forward pass, input in memory to
    logits; `relative_to_float32` is float32's time over the method's, pair by pair (above 1: faster).
    `peak_memory_bytes` is what loading and one run add to the process (on CUDA: what is allocated).
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(speed.batch_size, 3, *speed.input_size, generator=generator).to(device)
    before = _start_memory(device)
    try:
        loaded = load_artifact(artifact, device)
    except UnavailableError as error:
        return {"unavailable": str(error)}
    _within(speed, speed.warmup, 1, lambda: _timed(loaded.model, inputs))
    peak = _peak_memory(device) - before

    baseline = load_quantized(float32, device)
    _within(speed, speed.warmup, 1, lambda: _timed(baseline, inputs))
    pairs = _within(speed, speed.runs, MIN_RUNS, lambda: (_timed(loaded.model, inputs), _timed(baseline, inputs)))
    times = sorted(own for own, _ in pairs)
    ratios = sorted(other / own for own, other in pairs)
    median = statistics.median(times)
    return {
        "latency_ms": {"p50": 1e3 * median, "p90": 1e3 * times[int(0.9 * (len(times) - 1) + 0.5)], "n": len(times)},
        "images_per_second": speed.batch_size / median,
        "relative_to_float32": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
        "peak_memory_bytes": peak,
        "load_seconds": loaded.load_seconds,
        "engine": "eager",
        "batch_size": speed.batch_size,
        "input_size": list(speed.input_size),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
    }


def _within(speed: Speed, times: int, least: int, call: Callable[[], Any]) -> list[Any]:
    """What `times` calls give; fewer, but `least`, where they take longer than `speed.seconds`."""
    start, results = time.perf_counter(), []
    while len(results) < times and (len(results) < least or time.perf_counter() - start < speed.seconds):
        results.append(call())
    return results


def _timed(model: nn.Module, inputs: torch.Tensor) -> float:
    if inputs.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    forward(model, inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _start_memory(device: torch.device) -> int:
    """Reset the high-water mark; bytes in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM starts anew
    except OSError:
        pass  # elsewhere the mark is of the whole process's life, an upper bound
    return psutil.Process().memory_info().rss


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("--artifact", required=True)
    parser.add_argument("--float32", required=True)
    parser.add_argument("--speed", required=True, help="the speed section of params.yaml as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    speed = build(Speed, json.loads(arguments.speed), "speed")
    result = measure(arguments.artifact, arguments.float32, speed, models.device(arguments.device))
    write_json(arguments.output, result)


if __name__ == "__main__":
    run(main)
