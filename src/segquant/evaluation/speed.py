"""Latency, memory and load time of one artifact, beside float32 in the same process, which is to be a fresh one."""

from __future__ import annotations

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

from segquant.base.config import Speed
from segquant.base.errors import UnavailableError
from segquant.evaluation.predict import forward
from segquant.quant.artifacts import Artifact, describe_artifact, load_artifact

log = logging.getLogger(__name__)
TORCH = ("eager", "compile")  # engines whose threads are PyTorch's
LEAST_AGREEMENT = 0.98  # of the timed model's classes with the evaluated one's; compilers round otherwise


def measure(
    artifact: str | Path,
    float32: str | Path,
    speed: Speed,
    device: torch.device,
    load: Callable[[str | Path, torch.device], Artifact] = load_artifact,
    graph: Callable[[str], nn.Module] | None = None,
) -> dict[str, Any]:
    """Measure `artifact` and, in turn with it (A B A B), the float32 artifact, on each engine and batch size.

    Gives the content of metrics/speed/METHOD.json: `lanes` has a dict for each engine and batch size, and the
    first one's keys stand beside it too. Times are of the forward pass, input in memory to logits;
    `relative_to_float32` is the same engine's float32 time over the method's, pair by pair (above 1: faster).
    `peak_memory_bytes` is what loading and one eager run add to the process (on CUDA: what is allocated).

    An artifact with an engine of its own, which `load` has to know, is measured on that alone: in turn with what
    `graph` (engine) gives, float32 on that engine, and with PyTorch's eager float32, for `relative_to_eager`.
    """
    own = describe_artifact(artifact)["recipe"].get("engine")
    device = torch.device("cpu") if own else device  # where such engines run, and what they are told against
    inputs = {size: _inputs(size, *speed.input_size).to(device) for size in speed.batch_sizes}
    before = _start_memory(device)
    try:
        loaded = load(artifact, device)
    except UnavailableError as error:
        return {"unavailable": str(error)}
    _timed(loaded.model, inputs[speed.batch_sizes[0]])
    peak = _peak_memory(device) - before

    eager = load_artifact(float32, device).model
    beside = {"float32": graph(own), "eager": eager} if own else {"float32": eager}
    version = loaded.model.version if own else torch.__version__
    lanes = []
    for engine in (own,) if own else speed.engines:
        slow = 0.0
        for size in speed.batch_sizes:
            if slow > speed.seconds:
                lane = {
                    "engine": engine,
                    "batch_size": size,
                    "unavailable": f"not timed, a smaller batch takes {slow:.0f} s",
                }
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
        "engine_version": version,
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
        wanted = forward(model, inputs).argmax(1)
        model = torch.compile(model, dynamic=False)
        beside = {name: torch.compile(one, dynamic=False) for name, one in beside.items()}
        try:
            lane["compile_seconds"] = _timed(model, inputs)
            for one in beside.values():
                _timed(one, inputs)
        except Exception as error:  # inductor and the compilers behind it raise many types
            reason = " ".join(str(error).split())[:200]
            log.warning("compile: %s", reason)
            return {**lane, "unavailable": f"torch.compile failed: {reason}"}
        agreement = lane["agreement"] = (forward(model, inputs).argmax(1) == wanted).double().mean().item()
        if agreement < LEAST_AGREEMENT:
            return {**lane, "unavailable": f"its classes agree with the evaluated model's on {agreement:.1%} only"}
    # The threads of one engine's last run wait for work on the cores that the next model is timed on, but for engines
    # that share their threads, as PyTorch's do: so each model runs twice in its turn, and the second run counts.
    settled = engine not in TORCH

    def turn() -> tuple[float, ...]:
        times = []
        for one in (model, *beside.values()):
            if settled:
                forward(one, inputs)
            times.append(_timed(one, inputs))
        return tuple(times)

    for one in (model, *beside.values()):
        _within(speed.seconds, speed.warmup, lambda one=one: _timed(one, inputs))
    turns = _within(speed.seconds, speed.runs, turn)
    times = sorted(own for own, *_ in turns)
    median = statistics.median(times)
    ratios = {
        f"relative_to_{name}": _spread([others[at] / own for own, *others in turns]) for at, name in enumerate(beside)
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
