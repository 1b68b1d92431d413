"""What a reader must know beside a table: protocol, images, machine, and why a figure is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segquant.report.results import Result, measured


def footnotes(results: Mapping[str, Result], hardware: Mapping[str, Any] | None = None) -> list[str]:
    """Sentences for below the table; `hardware` is as `base.hardware.probe` gives it."""
    done = list(measured(results).values())
    return [*_accuracy(done), *_speed(done, hardware), *_quantize(done), *_missing(results)]


def protocol(results: Mapping[str, Result]) -> str:
    """The protocol and the number of images that the measured results share."""
    first = next(iter(measured(results).values()), None)
    return f"{first.accuracy['protocol']}, {first.accuracy['n_images']} images" if first else "nothing measured"


def machine(results: Mapping[str, Result], hardware: Mapping[str, Any] | None = None) -> str:
    """What speed was measured on: the GPU's name, or the processor with its instructions, cores and memory."""
    device = next((result.timing["device"] for result in measured(results).values() if result.timing), "cpu")
    if device != "cpu" or not hardware:
        return device
    memory = f", {hardware['memory_gb']} GB" if hardware.get("memory_gb") else ""
    instructions = ", ".join(hardware["instructions"])
    return f"{hardware['processor']} ({instructions}), {hardware['cores']} cores{memory}"


def timing(results: Mapping[str, Result], hardware: Mapping[str, Any] | None = None) -> str:
    """The images, machine and threads that speed was measured with."""
    first = next((result.timing for result in measured(results).values() if result.timing), None)
    if first is None:
        return "not timed"
    height, width = first["input_size"]
    return f"images of {height}x{width} on {machine(results, hardware)}, {first['threads']} threads"


def _accuracy(done: list[Result]) -> list[str]:
    if not done:
        return []
    first = done[0].accuracy
    notes = [f"{first['protocol']}, {first['n_images']} images; loss in points of mIoU against float32."]
    if any(result.loss_interval for result in done):
        notes.append("Loss from, to: its 95 % interval, from a paired bootstrap over images.")
    if "dtype" in first:
        notes.append(f"Evaluated with autocast to {first['dtype']}{', compiled' if first.get('compile') else ''}.")
    skipped = {result.method: result.accuracy["skipped"] for result in done if "skipped" in result.accuracy}
    return notes + [f"{method} skipped {len(images)} images." for method, images in skipped.items()]


def _speed(done: list[Result], hardware: Mapping[str, Any] | None) -> list[str]:
    timings = [result.timing for result in done if result.timing]
    if not timings:
        return []
    height, width = timings[0]["input_size"]
    counts = [speed["latency_ms"]["n"] for speed in timings]
    pairs = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else max(counts)
    engines = ", ".join(dict.fromkeys(f"{speed['engine']} {speed['engine_version']}" for speed in timings))
    where = machine({result.method: result for result in done}, hardware)
    notes = [
        f"Speed: {engines}, batch {timings[0]['batch_size']}, {height}x{width}, on {where}; {pairs} pairs with float32 "
        "on the same engine in one process (x float32: median, min, max; above 1 is faster). Methods were timed "
        "minutes apart: compare the ratios, not the milliseconds."
    ]
    if elsewhere := [result for result in done if result.float32_elsewhere]:
        names, device = ", ".join(result.method for result in elsewhere), elsewhere[0].timing["device"]
        notes.append(f"{names}: on {device}, beside float32 there, so without x eager.")
    if any("relative_to_eager" in speed for speed in timings):
        notes.append("x eager compares with PyTorch's eager float32, timed in the same turns.")
    return notes


def _quantize(done: list[Result]) -> list[str]:
    times = {result.method: result.quantize for result in done if "taken_from" in (result.quantize or {})}
    return [
        f"{method} was trained beforehand, in {_minutes(time['seconds'])}: {time['taken_from']}."
        for method, time in times.items()
    ]


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _missing(results: Mapping[str, Result]) -> list[str]:
    done = measured(results).values()
    notes = [
        f"{result.method} {'failed in timing' if result.failed else 'was not timed'}: {result.not_timed}."
        for result in done
        if result.not_timed
    ]
    for key, words in (("unavailable", "is unavailable"), ("failed", "failed")):
        reasons = {method: result.accuracy.get(key) for method, result in results.items()}
        notes += [f"{method} {words}: {reason}." for method, reason in reasons.items() if reason]
    failed = [lane for result in done for lane in result.lanes if lane.not_timed]
    return notes + [
        f"{lane.method}, {lane.speed['engine']}, batch {lane.speed['batch_size']}: {lane.not_timed}." for lane in failed
    ]
