"""Latency, memory and load time of one artifact of any engine, in turn with float32 in the same process.

Run as `python -m segquant.evaluation.speed` so that the process is fresh: its memory is this artifact's alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import nn

from segquant import models
from segquant.base.config import Speed
from segquant.base.entry import run
from segquant.base.errors import UnavailableError, one_line
from segquant.base.failures import missing
from segquant.base.files import write_json
from segquant.base.validate import build
from segquant.engines.extras import exports_lack, refused_size
from segquant.engines.load import load, load_graph
from segquant.evaluation.predict import forward
from segquant.quant.artifacts import describe_artifact, load_artifact
from segquant.quant.tensors import finite

log = logging.getLogger(__name__)
TORCH = ("eager", "compile")  # engines whose threads are PyTorch's
LEAST_AGREEMENT = 0.98  # of the timed model's classes with the evaluated one's; compilers round otherwise


def measure(
    artifact: str | Path, float32: str | Path, speed: Speed, device: torch.device, exports: str | Path = ""
) -> dict[str, Any]:
    """Measure `artifact` and, in turn with it (A B A B), the float32 artifact, on each engine and batch size.

    Gives the content of metrics/speed/METHOD.json: `lanes` has a dict for each engine and batch size, and the
    first one's keys stand beside it too. Times are of the forward pass, input in memory to logits;
    `relative_to_float32` is the same engine's float32 time over the method's, pair by pair (above 1: faster).
    `peak_memory_bytes` is what loading and one eager run add to the process (on CUDA: to what is allocated).

    A graph runs on its own engine alone, in turn with float32.onnx of the folder `exports` on that engine and with
    PyTorch's eager float32, for `relative_to_eager`. At a size that graphs refuse it is unavailable. Without an
    artifact, or without such a graph, its reason (`failures.missing`) is all.
    """
    info = describe_artifact(artifact)
    graph_engine = info["recipe"].get("engine")
    if reason := missing(info):
        return reason
    if graph_engine:
        if words := refused_size(speed.input_size):
            return {"unavailable": words}
        if reason := exports_lack(exports):
            return reason
    device = torch.device("cpu") if graph_engine else device  # where graphs run, and eager float32 beside them
    inputs = {size: _inputs(size, *speed.input_size).to(device) for size in speed.batch_sizes}
    before = _start_memory(device)
    try:
        loaded = load(artifact, device)
    except UnavailableError as error:
        return {"unavailable": str(error)}
    _timed(loaded.model, inputs[speed.batch_sizes[0]])
    peak = _peak_memory(device) - before

    eager = load_artifact(float32, device).model
    beside = {"float32": eager}
    if graph_engine:
        beside = {"float32": load_graph(Path(exports) / "float32.onnx", graph_engine), "eager": eager}
    lanes = []
    for engine in (graph_engine,) if graph_engine else speed.engines:
        slow = 0.0
        for size in speed.batch_sizes:
            if slow > speed.seconds:
                reason = f"not timed, a smaller batch takes {slow:.0f} s"
                lane = {"engine": engine, "batch_size": size, "unavailable": reason}
            else:
                lane = _lane(loaded.model, beside, engine, inputs[size], speed)
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
        "engine_version": loaded.model.version if graph_engine else torch.__version__,
        "lanes": lanes,
    }


def _inputs(batch_size: int, height: int, width: int) -> torch.Tensor:
    """Always the same blobs, (B, 3, H, W): noise would leave every class as near as the next."""
    coarse = torch.randn(batch_size, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic")


def _lane(
    model: nn.Module, beside: dict[str, nn.Module], engine: str, inputs: torch.Tensor, speed: Speed
) -> dict[str, Any]:
    """The speed of a model, and of those `beside` it, on one engine and one batch of inputs."""
    lane: dict[str, Any] = {"engine": engine, "batch_size": len(inputs), "agreement": 1.0}
    if engine == "compile":
        expected = forward(model, inputs).argmax(1)
        torch.compiler.reset()  # lanes share dynamo's cache of one `forward`; once it is full, models run eagerly
        model = torch.compile(model, dynamic=False)
        beside = {name: torch.compile(other, dynamic=False) for name, other in beside.items()}
        try:
            with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
                lane["compile_seconds"] = _timed(model, inputs)
                for other in beside.values():
                    _timed(other, inputs)
                compiled = finite(forward(model, inputs), "the compiled model")
        except Exception as error:  # inductor and the compilers behind it raise many types
            reason = one_line(error, 200)
            log.warning("compile: %s", reason)
            return {**lane, "unavailable": f"torch.compile failed: {reason}"}
        agreement = lane["agreement"] = (compiled.argmax(1) == expected).double().mean().item()
        if agreement < LEAST_AGREEMENT:
            return {**lane, "unavailable": f"its classes agree with the evaluated model's on {agreement:.1%} only"}
    # An engine's threads keep waiting for work after a run, on the cores that the next model is timed on. Engines that
    # share PyTorch's threads do not: with others each model runs twice in its turn, and the second run counts.
    settled = engine not in TORCH

    def turn() -> tuple[float, ...]:
        times = []
        for each in (model, *beside.values()):
            if settled:
                forward(each, inputs)
            times.append(_timed(each, inputs))
        return tuple(times)

    for each in (model, *beside.values()):
        _within(speed.seconds, speed.warmup, lambda each=each: _timed(each, inputs))
    turns = _within(speed.seconds, speed.runs, turn)
    times = sorted(first for first, *_ in turns)
    median = statistics.median(times)
    ratios = {
        f"relative_to_{name}": _spread([others[at] / first for first, *others in turns])
        for at, name in enumerate(beside)
    }
    return {
        **lane,
        "latency_ms": {"p50": 1e3 * median, "p90": 1e3 * times[int(0.9 * (len(times) - 1) + 0.5)], "n": len(times)},
        "images_per_second": len(inputs) / median,
        **ratios,
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


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


def _end_with_stdin() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=measure.__doc__)
    for name in ("artifact", "float32", "exports", "output"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--speed", required=True, help="the speed section of params.yaml as JSON")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attached", action="store_true", help="end when standard input does")
    a = parser.parse_args()
    if a.attached:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    options = build(Speed, json.loads(a.speed), "speed")
    write_json(a.output, measure(a.artifact, a.float32, options, models.device(a.device), a.exports))


if __name__ == "__main__":
    run(main)
