"""The results as rows of text and numbers, and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from segquant.base.files import read_json

BASELINE = "float32"


def collect(metrics: str | Path, methods: Iterable[str], name: str = "{}.json") -> dict[str, dict[str, Any]]:
    """{method: its accuracy keys, and `quantize` and `speed` where they were measured} from the metrics folder.

    `name` is where a method's accuracy keys lie in it.
    """
    results = {}
    for method in methods:
        path = Path(metrics) / name.format(method)
        if path.is_file():
            results[method] = read_json(path)
            for part in ("quantize", "speed"):
                path = Path(metrics) / part / f"{method}.json"
                if path.is_file() and "unavailable" not in results[method]:
                    results[method][part] = read_json(path)
    return results


def timed(result: dict[str, Any]) -> dict[str, Any] | None:
    """A result's speed, where it could be measured."""
    speed = result.get("speed")
    return None if speed is None or "unavailable" in speed else speed


def measured(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {k: v for k, v in results.items() if "unavailable" not in v}


def loss(results: dict[str, dict[str, Any]], method: str) -> float | None:
    """Points of mIoU (0 to 100) that `method` lies below float32; None without a float32."""
    if BASELINE not in measured(results):
        return None
    return 100 * (results[BASELINE]["mean_iou"] - results[method]["mean_iou"])


def speedup(result: dict[str, Any]) -> dict[str, float] | None:
    """How many times as fast as PyTorch's eager float32: median, min and max; None where that was not measured."""
    speed = timed(result)
    if not speed:
        return None
    return speed.get("relative_to_eager") or (speed["relative_to_float32"] if speed["engine"] == "eager" else None)


def relative_latency(result: dict[str, Any]) -> float | None:
    """Latency in that of PyTorch's eager float32, from pairs timed in turn: what plots compare methods by."""
    ratio = speedup(result)
    return 1 / ratio["median"] if ratio else None


def _speed(get: Callable[[dict], Any]) -> Callable:
    return lambda results, name: get(timed(results[name])) if timed(results[name]) else None


def _key(key: str, factor: float = 1.0) -> Callable:
    def get(results, name):
        value = results[name].get(key)
        return value * factor if isinstance(value, int | float) else value

    return get


def _end(which: int) -> Callable:
    """One end of the loss's 95 % interval, where `advice.add_intervals` put it."""
    return lambda results, name: results[name].get("loss_interval", (None, None))[which]


# (name in results.csv, heading, decimals, value)
COLUMNS: tuple[tuple[str, str, int, Callable], ...] = (
    ("algorithm", "algorithm", 0, _key("algorithm")),
    ("engine", "engine", 0, lambda results, name: results[name].get("engine", "pytorch")),
    ("mean_iou", "mIoU %", 2, _key("mean_iou", 100)),
    ("loss_points", "loss", 2, loss),
    ("loss_low", "loss from", 2, _end(0)),
    ("loss_high", "to", 2, _end(1)),
    ("mean_accuracy", "mean acc %", 2, _key("mean_accuracy", 100)),
    ("overall_accuracy", "pixel acc %", 2, _key("overall_accuracy", 100)),
    ("agreement", "agree %", 2, _key("agreement", 100)),
    ("size_mb", "MB", 2, _key("size_bytes", 1e-6)),
    ("compression", "x smaller", 2, _key("compression")),
    ("quantized_percent", "quantized %", 1, _key("quantized_fraction", 100)),
    ("quantize_seconds", "quantize s", 1, lambda results, name: results[name].get("quantize", {}).get("seconds")),
    ("latency_ms", "p50 ms", 0, _speed(lambda s: s["latency_ms"]["p50"])),
    ("latency_p90_ms", "p90 ms", 0, _speed(lambda s: s["latency_ms"]["p90"])),
    ("speedup", "x float32", 2, _speed(lambda s: s["relative_to_float32"]["median"])),
    ("speedup_min", "min", 2, _speed(lambda s: s["relative_to_float32"]["min"])),
    ("speedup_max", "max", 2, _speed(lambda s: s["relative_to_float32"]["max"])),
    ("speedup_eager", "x eager", 2, lambda results, name: (speedup(results[name]) or {}).get("median")),
    ("memory_mb", "memory MB", 0, _speed(lambda s: s["peak_memory_bytes"] / 1e6)),
    ("load_seconds", "load s", 2, _speed(lambda s: s["load_seconds"])),
)


# What the page says of a column.
MEANING = {
    "algorithm": "How the codes were found",
    "engine": "What runs it",
    "mean_iou": "Mean over classes of intersection over union, percent",
    "loss_points": "Points of mIoU below float32",
    "loss_low": "Lower end of the loss's 95 % interval over images",
    "loss_high": "Upper end of the loss's 95 % interval over images",
    "mean_accuracy": "Mean over classes of the share of pixels that are right, percent",
    "overall_accuracy": "Share of labelled pixels that are right, percent",
    "agreement": "Share of all pixels with float32's class, percent",
    "size_mb": "Size of the weights' file, megabytes (10^6 bytes)",
    "compression": "Times smaller than float32's file",
    "quantized_percent": "Share of the parameters that are quantized, percent",
    "quantize_seconds": "Time to calibrate and train, seconds",
    "latency_ms": "Median latency, milliseconds, each method in minutes of its own: compare the ratios",
    "latency_p90_ms": "90th percentile of latency, milliseconds",
    "speedup": "Times as fast as float32 on the same engine, median of pairs",
    "speedup_min": "Least of those pairs",
    "speedup_max": "Greatest of those pairs",
    "speedup_eager": "Times as fast as PyTorch's eager float32, median of pairs",
    "memory_mb": "Peak memory that loading and running add, megabytes",
    "load_seconds": "Time to load, seconds",
}


def cells(results: dict[str, dict[str, Any]], method: str) -> list[str]:
    """The row of one measured method as text, in the order of COLUMNS."""
    values = [(get(results, method), decimals) for _, _, decimals, get in COLUMNS]
    return [
        "" if value is None else value if isinstance(value, str) else f"{round(value, decimals) + 0.0:.{decimals}f}"
        for value, decimals in values  # + 0.0: no -0.00
    ]


def values(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """`method`, COLUMNS by name and `relative_latency` for each measured method, numbers as they are, None where there
    is none."""
    return [
        {
            "method": method,
            **{name: get(results, method) for name, _, _, get in COLUMNS},
            "relative_latency": relative_latency(result),
        }
        for method, result in measured(results).items()
    ]


SPEED_HEADINGS = (
    "method",
    "engine",
    "batch",
    "p50 ms",
    "p90 ms",
    "images/s",
    "x float32",
    "min",
    "max",
    "n",
    "x eager",
    "compile s",
)


def speed_rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row of SPEED_HEADINGS for each engine and batch size that was measured, batch size by batch size."""
    rows = []
    for method, result in measured(results).items():
        for lane in result.get("speed", {}).get("lanes", ()):
            row = [method, lane["engine"], str(lane["batch_size"])]
            if "unavailable" in lane:
                rows.append([*row, *[""] * (len(SPEED_HEADINGS) - 3)])
                continue
            times, ratio = lane["latency_ms"], lane["relative_to_float32"]
            numbers = [f"{times['p50']:.0f}", f"{times['p90']:.0f}", f"{lane['images_per_second']:.2f}"]
            ratios = [f"{ratio[key]:.2f}" for key in ("median", "min", "max")]
            eager = f"{lane['relative_to_eager']['median']:.2f}" if "relative_to_eager" in lane else ""
            compiled = f"{lane['compile_seconds']:.0f}" if "compile_seconds" in lane else ""
            rows.append([*row, *numbers, *ratios, str(times["n"]), eager, compiled])
    return sorted(rows, key=lambda row: (row[1] == "compile", int(row[2])))


def footnotes(results: dict[str, dict[str, Any]], hardware: dict[str, Any] | None = None) -> list[str]:
    """Protocol, images, hardware; what was not measured and why."""
    done = measured(results)
    notes = []
    if done:
        one = next(iter(done.values()))
        notes.append(f"{one['protocol']}, {one['n_images']} images; loss in points of mIoU against float32.")
        if any("loss_interval" in one for one in done.values()):
            notes.append("Loss from and to: its 95 % interval, by the paired bootstrap over images.")
        if "dtype" in one:
            notes.append(f"Evaluated with autocast to {one['dtype']}{', compiled' if one['compile'] else ''}.")
        notes += [f"{name} skipped {len(r['skipped'])} images." for name, r in done.items() if "skipped" in r]
        speeds = [timed(r) for r in done.values() if timed(r)]
        if speeds:
            speed = speeds[0]
            where = speed["device"]
            if where == "cpu" and hardware:
                instructions = ", ".join(hardware["instructions"])
                where = f"{hardware['processor']} ({instructions}), {hardware['cores']} cores"
            height, width = speed["input_size"]
            counts = [one["latency_ms"]["n"] for one in speeds]
            pairs = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else max(counts)
            engines = ", ".join(dict.fromkeys(f"{one['engine']} {one['engine_version']}" for one in speeds))
            notes.append(
                f"Speed: {engines}, batch {speed['batch_size']}, {height}x{width}, on {where}; {pairs} pairs with the "
                "engine's own float32 in one process (x float32: median, min, max; above 1 is faster). Milliseconds "
                "are of different minutes: compare ratios."
            )
            if any("relative_to_eager" in one for one in speeds):
                notes.append("x eager is told against PyTorch's eager float32, timed in the same turns.")
    for name, result in done.items():
        took = result.get("quantize", {})
        if "taken_from" in took:
            notes.append(f"{name} was trained beforehand, in {took['seconds'] / 60:.0f} minutes: {took['taken_from']}.")
    untimed = {name: r["speed"]["unavailable"] for name, r in done.items() if "speed" in r and not timed(r)}
    notes += [f"{name} was not timed: {reason}." for name, reason in untimed.items()]
    notes += [f"{name} is unavailable: {r['unavailable']}." for name, r in results.items() if "unavailable" in r]
    notes += [
        f"{name}, {lane['engine']}, batch {lane['batch_size']}: {lane['unavailable']}."
        for name, r in done.items()
        for lane in r.get("speed", {}).get("lanes", ())
        if "unavailable" in lane
    ]
    return notes


def to_csv(results: dict[str, dict[str, Any]]) -> str:
    """results.csv: a line for each measured method, units in the column names' own terms."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", *(name for name, *_ in COLUMNS), "relative_latency"])
    for method, result in measured(results).items():
        relative = relative_latency(result)
        writer.writerow([method, *cells(results, method), "" if relative is None else f"{relative:.3f}"])
    return text.getvalue()
