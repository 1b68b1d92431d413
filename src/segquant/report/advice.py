"""Which precision to ship: what the results come to, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from segquant.evaluation.bootstrap import FEWEST, interval, resampled
from segquant.evaluation.counts import all_counts, read_counts
from segquant.report.tables import BASELINE, loss, measured, speedup

POINTS = 1.0  # of mIoU, that a method may lose and still be recommended
# What is taken for alike: speed varies by more from run to run, mIoU from data set to data set.
ALIKE_POINTS, ALIKE_SIZE, ALIKE_SPEED = 0.1, 1.05, 1.2

ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def add_intervals(results: dict[str, dict[str, Any]], metrics: str | Path) -> None:
    """Put `loss_interval` into each measured result whose counts lie below `metrics` (`counts.all_counts`): the 95 %
    interval of its loss against float32, in points of mIoU, from the paired bootstrap over images."""
    done = measured(results)
    counts = {name: read_counts(path) for name, path in all_counts(metrics).items() if name in done}
    if BASELINE not in counts or len(counts[BASELINE].ids) < FEWEST:
        return
    counts = {name: one for name, one in counts.items() if one.alike(counts[BASELINE])}  # not of a run half rebuilt
    draws = dict(zip(counts, resampled(list(counts.values()))))
    for name in counts:
        low, high = interval(100 * np.subtract(draws[BASELINE][:, 0], draws[name][:, 0]))
        results[name]["loss_interval"] = [low, high]


def advise(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The methods to ship and those to leave, of what was measured.

    {within: the methods that lose at most POINTS; smallest, fastest, pytorch (the fastest without another engine): one
    of them, or None; lossy: methods that clearly lose more; unsure: those that may; pointless: {method: another that
    is at least about as good in size, speed and accuracy, and clearly better in one of them}}. {} without a float32
    and something to compare with it.
    """
    done = measured(results)
    if BASELINE not in done or len(done) < 2:
        return {}
    losses = {name: loss(results, name) for name in done}
    within = [name for name in done if name != BASELINE and losses[name] <= POINTS]
    size = {name: done[name]["size_bytes"] for name in done}
    smaller = [name for name in within if size[name] < size[BASELINE]]
    smallest = min(smaller, key=lambda name: (size[name], losses[name]), default=None)
    fastest = _fastest(done, losses, within)
    pytorch = _fastest(done, losses, [name for name in within if "engine" not in done[name]])
    lossy = [name for name in done if done[name].get("loss_interval", [losses[name]])[0] > POINTS]
    unsure = [name for name in done if losses[name] > POINTS and name not in lossy]
    better = {
        name: [other for other in within if other != name and _beats(done, losses, other, name)] for name in within
    }
    pointless = {
        name: max(others, key=lambda other: (other in (smallest, fastest), not better[other], -losses[other]))
        for name, others in better.items()
        if others and name not in (smallest, fastest, pytorch)
    }
    return {
        "within": within,
        "smallest": smallest,
        "fastest": fastest,
        "pytorch": pytorch,
        "lossy": lossy,
        "unsure": unsure,
        "pointless": pointless,
    }


def _fastest(done: dict[str, Any], losses: dict[str, float], names: list[str]) -> str | None:
    """Of those about as fast as the fastest, which chance may swap, the most accurate one; None where none is faster
    than float32."""
    speeds = {name: speedup(done[name])["median"] for name in names if speedup(done[name])}
    most = max(speeds.values(), default=0)
    if most < ALIKE_SPEED:
        return None
    alike = [name for name, speed in speeds.items() if speed >= max(ALIKE_SPEED, most / ALIKE_SPEED)]
    return min(alike, key=lambda name: (round(losses[name], 2), done[name]["size_bytes"]))


def _beats(done: dict[str, Any], losses: dict[str, float], one: str, other: str) -> bool:
    """Whether `one` is about as small, as fast and as accurate as `other`, and clearly better in one of them.

    Of two that were not timed size and accuracy decide; one that was timed and one that was not do not compare.
    """
    size = done[one]["size_bytes"] / done[other]["size_bytes"]
    points = losses[one] - losses[other]
    speeds = [speedup(done[name]) for name in (one, other)]
    if any(speeds) and not all(speeds):
        return False
    faster = speeds[0]["median"] / speeds[1]["median"] if all(speeds) else 1.0
    alike = size <= ALIKE_SIZE and points <= ALIKE_POINTS and faster >= 1 / ALIKE_SPEED
    return alike and (size < 1 / ALIKE_SIZE or points < -ALIKE_POINTS or faster > ALIKE_SPEED)


def sentences(results: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(heading, method or methods, words) of what `advise` found, best first; [] where it found nothing."""
    found, done = advise(results), measured(results)
    if not found:
        return []
    told = []
    smallest, fastest = found["smallest"], found["fastest"]
    if smallest:
        parts = [_size(done[smallest]), _loss(results, smallest)]
        parts += [_fast(done[smallest])] if speedup(done[smallest]) else []
        told.append(("Smallest", smallest, "; ".join(parts) + "."))
    else:
        told.append(("Smallest", BASELINE, f"No smaller method stays within {POINTS:g} point of its mIoU."))
    if fastest:
        words = f"{_fast(done[fastest])}; {_loss(results, fastest)}; {_size(done[fastest])}."
        told.append(("Fastest", fastest, words[0].upper() + words[1:]))
    elif not found["within"] or any(speedup(done[name]) for name in found["within"]):
        told.append(("Fastest", BASELINE, "No method within a point of it is clearly faster."))
    if found["pytorch"] and found["pytorch"] != fastest:
        one = found["pytorch"]
        words = f"{_fast(done[one])}; {_loss(results, one)}; {_size(done[one])}."
        told.append(("Fastest in PyTorch", one, words[0].upper() + words[1:]))
    for name in found["lossy"]:
        told.append(("Avoid", name, f"It {_loss(results, name)}."))
    for name in found["unsure"]:
        told.append(("Unsure", name, f"It {_loss(results, name)}: more images would tell."))
    for better in dict.fromkeys(found["pointless"].values()):
        names = [name for name, other in found["pointless"].items() if other == better]
        alike = "small, fast and accurate" if speedup(done[better]) else "small and accurate"
        words = f"{better} is at least about as {alike}, and clearly better in one of these."
        told.append(("Without advantage", ", ".join(names), words))
    return told


def _size(result: dict[str, Any]) -> str:
    return f"{result['size_bytes'] / 1e6:.2f} MB, {result['compression']:.1f} times smaller than float32"


def _loss(results: dict[str, dict[str, Any]], name: str) -> str:
    points = loss(results, name)
    words = (
        f"loses {points:.2f} points of mIoU"
        if points >= 0.005
        else (f"gains {-points:.2f} points of mIoU" if points <= -0.005 else "loses nothing in mIoU")
    )
    if "loss_interval" in results[name]:
        low, high = results[name]["loss_interval"]
        low, high = (-high, -low) if points <= -0.005 else (low, high)
        words += f" (95 % interval: {low:.2f} to {high:.2f})"
    return words


def _fast(result: dict[str, Any]) -> str:
    ratio = speedup(result)
    if 1 / ALIKE_SPEED < ratio["median"] < ALIKE_SPEED:
        words = "about as fast as float32"
    elif ratio["median"] >= 1:
        words = f"{ratio['median']:.1f} times as fast as float32"
    else:
        words = f"takes {1 / ratio['median']:.1f} times as long as float32"
        ratio = {"min": 1 / ratio["max"], "max": 1 / ratio["min"]}
    engine = ENGINES.get(result.get("engine"))
    return f"{f'on {engine}, ' if engine else ''}{words} in PyTorch ({ratio['min']:.2f} to {ratio['max']:.2f})"
