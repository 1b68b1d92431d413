"""What each class loses, most frequent first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from segquant.base.files import csv_rows, csv_text
from segquant.report.columns import number
from segquant.report.results import BASELINE


@dataclass(frozen=True)
class ClassResult:
    """One class: its share of the labelled pixels in percent, and {method: IoU} and {method: accuracy} in percent.

    A method is missing where the class is in neither its predictions nor the labels.
    """

    name: str
    share: float
    iou: dict[str, float]
    accuracy: dict[str, float]

    def loss(self, method: str) -> float | None:
        """Points of IoU below float32; None where either has no IoU."""
        known = BASELINE in self.iou and method in self.iou
        return self.iou[BASELINE] - self.iou[method] if known else None


def read_classes(predictions: str | Path, methods: Iterable[str]) -> list[ClassResult]:
    """Each class that occurs or is predicted, from `predictions`/METHOD/classes.csv, most pixels first."""
    names: dict[str, str] = {}
    pixels: dict[str, int] = {}
    scores: dict[str, dict[str, dict[str, float]]] = {"iou": {}, "accuracy": {}}
    for method in methods:
        for row in csv_rows((Path(predictions) / method / "classes.csv").read_text()):
            names[row["id"]], pixels[row["id"]] = row["name"], int(row["pixels"])
            for key, by_class in scores.items():
                by_method = by_class.setdefault(row["id"], {})
                if row[key]:
                    by_method[method] = 100 * float(row[key])
    total = max(1, sum(pixels.values()))
    classes = [
        ClassResult(names[number], 100 * count / total, scores["iou"][number], scores["accuracy"][number])
        for number, count in pixels.items()
    ]
    return sorted(classes, key=lambda result: -result.share)


def to_csv(classes: Sequence[ClassResult], methods: Sequence[str]) -> str:
    """class_loss.csv: a line for each class and each of `methods`, with its IoU in percent and its loss in points."""
    rows = [
        [result.name, number(result.share, 3), method, number(result.iou[method], 2), number(result.loss(method), 2)]
        for result in classes
        for method in methods
        if result.loss(method) is not None
    ]
    return csv_text(rows, ["class", "pixels_percent", "method", "iou", "loss"])
