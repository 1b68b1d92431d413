"""Latency, memory and load time of one artifact, beside float32 in the same process.

Run as `python -m segquant.evaluation.speed` so that the process is fresh: memory is this artifact's own.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from segquant import models
from segquant.config import Speed
from segquant.entry import run
from segquant.errors import UnavailableError
from segquant.evaluation.predict import forward
from segquant.fields import build
from segquant.files import write_json
from segquant.quant.artifacts import load_artifact, load_quantized

log = logging.getLogger(__name__)
LEAST_AGREEMENT = 0.98  # of the timed model's classes with the evaluated one's; compilers round otherwise


def measure(artifact: str | Path, float32: str | Path, speed: Speed, device: torch.device) -> dict[str, Any]:
    """Measure `artifact` and, in turn with it (A B A B), the float32 artifact, on each engine and batch size.

    Gives the content of metrics/speed/METHOD.json: `lanes` has a dict for each engine and batch size, and the
    first one's keys stand beside it too. Times are of the forward pass, input in memory to logits;
    `relative_to_float32` is the same engine's float32 time over the method's, pair by pair (above 1: faster).
    `peak_memory_bytes` is what loading and one eager run add to the process (on CUDA: what is allocated).
    """
    inputs = {size: _inputs(size, *speed.input_size).to(device) for size in speed.batch_sizes}
    before = _start_memory(device)
    try:
        loaded = load_artifact(artifact, device)
    except UnavailableError as error:
        return {"unavailable": str(error)}
    _timed(loaded.model, inputs[speed.batch_sizes[0]])
    peak = _peak_memory(device) - before

    pair = loaded.model, load_quantized(float32, device)
    lanes = []
    for engine in speed.engines:
        slow = 0.0
        for size in speed.batch_sizes:
            if slow > speed.seconds:
                lane = {
                    "engine": engine,
                    "batch_size": size,
                    "unavailable": f"not timed, a smaller batch takes {slow:.0f} s",
                }
            else:
                lane = _lane(*pair, engine, inputs[size], speed)
                slow = lane.get("latency_ms", {"p50": 0})["p50"] / 1e3
            lanes.append(lane)
    first = next((lane for lane in lanes if "unavailable" not in lane), None)
    if first is None:
        return {"unavailable": lanes[0]["unavailable"]}
    return {
        **first,
        "peak_memory_bytes": peak,
        "load_seconds": loaded.load_seconds,
        "input_size": list(speed.input_size),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "lanes": lanes,
    }


def _inputs(batch_size: int, height: int, width: int) -> torch.Tensor:
    """Always the same blobs, (B, 3, H, W): noise would leave every class as near as the next."""
    coarse = torch.randn(batch_size, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic")


def _lane(model: nn.Module, float32: nn.Module, engine: str, inputs: torch.Tensor, speed: Speed) -> dict[str, Any]:
    """Both models' speed on one engine and one batch of inputs."""
    lane: dict[str, Any] = {"engine": engine, "batch_size": len(inputs), "agreement": 1.0}
    if engine == "compile":
        wanted = forward(model, inputs).argmax(1)
        model, float32 = (torch.compile(one, dynamic=False) for one in (model, float32))
        try:
            lane["compile_seconds"] = _timed(model, inputs)
            _timed(float32, inputs)
        except Exception as error:  # inductor and the compilers behind it raise many types
            reason = " ".join(str(error).split())[:200]
            log.warning("compile: %s", reason)
            return {**lane, "unavailable": f"torch.compile failed: {reason}"}
        agreement = lane["agreement"] = (forward(model, inputs).argmax(1) == wanted).double().mean().item()
        if agreement < LEAST_AGREEMENT:
            return {**lane, "unavailable": f"its classes agree with the evaluated model's on {agreement:.1%} only"}
    for one in (model, float32):
        _within(speed.seconds, speed.warmup, lambda one=one: _timed(one, inputs))
    pairs = _within(speed.seconds, speed.runs, lambda: (_timed(model, inputs), _timed(float32, inputs)))
    times = sorted(own for own, _ in pairs)
    ratios = sorted(other / own for own, other in pairs)
    median = statistics.median(times)
    return {
        **lane,
        "latency_ms": {"p50": 1e3 * median, "p90": 1e3 * times[int(0.9 * (len(times) - 1) + 0.5)], "n": len(times)},
        "images_per_second": len(inputs) / median,
        "relative_to_float32": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
    }


def _within(seconds: float, times: int, call: Callable[[], Any]) -> list[Any]:
    """What `times` calls give; fewer where they take longer than `seconds`: one at least, three within thrice that."""
    start, results = time.perf_counter(), [call()]
    while len(results) < times:
        spent = time.perf_counter() - start
        if spent > (3 * seconds if len(results) < 3 else seconds):
            break
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
