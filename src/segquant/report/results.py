"""What is known of each method: `Result`, read from the JSON files of a metrics folder or from what a run gives."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segquant.base.config import BASELINE
from segquant.base.errors import MethodsFailed, SegquantError
from segquant.base.failures import missing
from segquant.base.files import read_json
from segquant.base.validate import shown
from segquant.evaluation.bootstrap import FEWEST, interval, resampled
from segquant.evaluation.counts import all_counts, read_counts
from segquant.report.checked import checked, checked_rows

PYTORCH = "pytorch"  # the engine of a method that names none
# DVC keeps a failure as it keeps any result: until something that the lane depends on changes.
RETRY = (
    "to try again unchanged: dvc repro --force --downstream quantize@METHOD (or evaluate@, or benchmark@; "
    "of quant.packed pack@, evaluate_packed@, benchmark_packed@)"
)
ACCURACY = "accuracy/{}.json"  # where a method's accuracy is, below the metrics folder
CLASSES = "classes/{}.csv"  # and that of each class
PREDICTED = ("predictions/{}/metrics.json", "predictions/{}/classes.csv")  # the copies that stages depend on


@dataclass(frozen=True)
class Result:
    """What is known of one method.

    `accuracy`, `quantize` and `speed` hold the method's JSON files of these kinds as they are, and None for a file
    that is missing. `loss_interval` is the 95 % interval of `loss`. `float32_iou` is float32's mIoU (0 to 1) on the
    same images, and `float32_device` what it was timed on. `labels` is {class: its labelled pixels}, known only where
    results of two revisions are compared. A method without figures has the reason in their place, under `unavailable`
    or `failed` (base/failures.py).
    """

    method: str
    accuracy: Mapping[str, Any]
    quantize: Mapping[str, Any] | None = None
    speed: Mapping[str, Any] | None = None
    loss_interval: tuple[float, float] | None = None
    float32_iou: float | None = None
    float32_device: str | None = None
    labels: Mapping[str, str] | None = None

    @property
    def missing(self) -> str | None:
        """Why there are no figures: "unavailable: REASON" or "failed: REASON"."""
        return next((f"{kind}: {reason}" for kind, reason in missing(self.accuracy).items()), None)

    @property
    def failed(self) -> str | None:
        """Why the method, or its timing, failed."""
        return self.accuracy.get("failed") or (self.speed or {}).get("failed")

    @property
    def not_timed(self) -> str | None:
        """Why the method's speed could not be measured."""
        return next(iter(missing(self.speed or {}).values()), None)

    @property
    def timing(self) -> Mapping[str, Any] | None:
        """The speed, where it could be measured."""
        return None if self.not_timed else self.speed

    @property
    def engine(self) -> str:
        return self.accuracy.get("engine", PYTORCH)

    @property
    def mean_iou(self) -> float:
        """From 0 to 1."""
        return self.accuracy["mean_iou"]

    @property
    def size_mb(self) -> float:
        """Size of the weights' file in 10^6 bytes."""
        return self.accuracy["size_bytes"] / 1e6

    @property
    def loss(self) -> float | None:
        """Points of mIoU (0 to 100) below float32; None without a float32."""
        return None if self.float32_iou is None else 100 * (self.float32_iou - self.mean_iou)

    @property
    def quantize_seconds(self) -> float | None:
        """Time to calibrate and train."""
        return (self.quantize or {}).get("seconds")

    @property
    def memory_mb(self) -> float | None:
        """Peak memory that loading and running add, in 10^6 bytes."""
        peak = (self.timing or {}).get("peak_memory_bytes")
        return None if peak is None else peak / 1e6

    @property
    def speedup_eager(self) -> Mapping[str, float] | None:
        """How many times as fast as PyTorch's eager float32: median, min and max.

        None where that was not measured, and where float32 has another device: a graph runs on the CPU beside a GPU.
        """
        timing = self.timing or {}
        if self.float32_elsewhere:
            return None
        eager = timing.get("relative_to_float32") if timing.get("engine") == "eager" else None
        return timing.get("relative_to_eager") or eager

    @property
    def float32_elsewhere(self) -> bool:
        """Whether this method and float32 were timed on different devices."""
        return None not in (self.timing, self.float32_device) and self.timing["device"] != self.float32_device

    @property
    def relative_latency(self) -> float | None:
        """Latency as a multiple of PyTorch's eager float32, from pairs timed in turn: plots compare methods by it."""
        return 1 / self.speedup_eager["median"] if self.speedup_eager else None

    @property
    def lanes(self) -> list[Result]:
        """This result with the speed of each engine and batch size that was tried."""
        return [
            replace(self, speed={**lane, "device": self.speed.get("device")})
            for lane in (self.speed or {}).get("lanes", ())
        ]


def from_json(content: Mapping[str, Mapping[str, Any]]) -> dict[str, Result]:
    """Results from {method: its accuracy keys and, where known, `quantize`, `speed` and `loss_interval`}."""
    float32_iou = content.get(BASELINE, {}).get("mean_iou")
    float32_device = content.get(BASELINE, {}).get("speed", {}).get("device")
    results = {}
    for method, keys in content.items():
        accuracy = dict(keys)
        quantize, speed, ends = (accuracy.pop(part, None) for part in ("quantize", "speed", "loss_interval"))
        results[method] = Result(
            method, accuracy, quantize, speed, tuple(ends) if ends else None, float32_iou, float32_device
        )
    return results


def to_json(results: Mapping[str, Result]) -> dict[str, dict[str, Any]]:
    """What `from_json` takes: the content of results.json and of `--json`."""
    content = {}
    for method, result in results.items():
        ends = list(result.loss_interval) if result.loss_interval else None
        parts = {"quantize": result.quantize, "speed": result.speed, "loss_interval": ends}
        content[method] = {**result.accuracy, **{key: part for key, part in parts.items() if part is not None}}
    return content


def collect(
    metrics: str | Path, methods: Iterable[str], accuracy: str = ACCURACY, classes: str = CLASSES
) -> dict[str, Result]:
    """{method: its result} for each of `methods` whose accuracy is in the folder `metrics`, at the path `accuracy`.

    Raises SegquantError for a file that segquant did not write so, and for a method that was scored by another protocol
    or on other images than float32: on as many others, as the labelled pixels at the path `classes` tell.
    """
    folder, content = Path(metrics), {}
    for method in methods:
        paths = {"accuracy": folder / accuracy.format(method)}
        paths |= {part: folder / part / f"{method}.json" for part in ("quantize", "speed")}
        parts = {part: checked(part, read_json(path), str(path)) for part, path in paths.items() if path.is_file()}
        if result := parts.pop("accuracy", None):
            content[method] = result | ({} if missing(result) else parts)
    scored = {method: result for method, result in content.items() if not missing(result)}
    files = {method: path for method in scored if (path := folder / classes.format(method)).is_file()}
    labels = {method: labelled(path.read_text(errors="replace"), str(path)) for method, path in files.items()}
    baseline = scored.get(BASELINE, {})
    for method, result in scored.items():
        for key in ("protocol", "n_images"):
            if result[key] != baseline.get(key, result[key]):
                raise SegquantError(
                    f"{folder / accuracy.format(method)} has {key} {shown(result[key])}, and float32's "
                    f"{shown(baseline[key])}: run `dvc repro`"
                )
        if {method, BASELINE} <= labels.keys() and labels[method] != labels[BASELINE]:
            raise SegquantError(
                f"{files[method]} has other labelled pixels than float32's, of other images or labels: run `dvc repro`"
            )
    return from_json(content)


def labelled(text: str, where: str) -> dict[str, str]:
    """{class: its labelled pixels} of a method's classes CSV, which stands at `where`; classes without any are left
    out, as one method may predict them and another not."""
    rows = checked_rows(text, ["name", "pixels"], where)
    return {row["name"]: row["pixels"] for row in rows if row["pixels"] != "0"}


def measured(results: Mapping[str, Result]) -> dict[str, Result]:
    return {method: result for method, result in results.items() if result.missing is None}


def failures(results: Mapping[str, Result]) -> dict[str, str]:
    """{method: why it, or its timing, failed}."""
    return {method: result.failed for method, result in results.items() if result.failed}


def fail_with(methods: Collection[str], hint: str) -> None:
    """Raise MethodsFailed where `methods`, those that failed, are not empty."""
    if methods:
        raise MethodsFailed(f"{', '.join(methods)} failed, as the results say; the other methods are done; {hint}")


def with_intervals(results: Mapping[str, Result], metrics: str | Path) -> dict[str, Result]:
    """The results with the `loss_interval` of each measured method whose counts by image are below `metrics`.

    It is the 95 % interval of the loss in points of mIoU, from the paired bootstrap over images. Counts of other images
    than float32's, as a run that was rebuilt in part leaves them, give none.
    """
    files = {method: path for method, path in all_counts(metrics).items() if method in measured(results)}
    counts = {method: read_counts(path) for method, path in files.items()}
    if BASELINE not in counts or len(counts[BASELINE].ids) < FEWEST:
        return dict(results)
    counts = {method: count for method, count in counts.items() if count.alike(counts[BASELINE])}
    draws = dict(zip(counts, resampled(list(counts.values()))))
    ends = {m: interval(100 * np.subtract(draws[BASELINE][:, 0], draws[m][:, 0])) for m in counts}
    return {m: replace(result, loss_interval=ends.get(m, result.loss_interval)) for m, result in results.items()}
