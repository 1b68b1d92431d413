"""What each class loses, most frequent first."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from segquant.report.tables import BASELINE


def read_classes(predictions: str | Path, methods: Iterable[str]) -> list[dict[str, Any]]:
    """A dict for each class that occurs or is predicted, from `predictions`/METHOD/classes.csv, most pixels first.

    {name, share (of labelled pixels, percent), iou: {method: percent}, accuracy: {method: percent}}; a method is left
    out where the class is in neither its predictions nor the labels.
    """
    found: dict[str, dict[str, Any]] = {}
    for method in methods:
        with open(Path(predictions) / method / "classes.csv", newline="") as file:
            for row in csv.DictReader(file):
                one = found.setdefault(row["name"], {"name": row["name"], "pixels": 0, "iou": {}, "accuracy": {}})
                one["pixels"] = int(row["pixels"])
                for key in ("iou", "accuracy"):
                    if row[key]:
                        one[key][method] = 100 * float(row[key])
    total = max(1, sum(one["pixels"] for one in found.values()))
    for one in found.values():
        one["share"] = 100 * one.pop("pixels") / total
    return sorted(found.values(), key=lambda one: -one["share"])


def losses(classes: list[dict[str, Any]], methods: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of the heat map: {name, share, iou (float32's), loss: a number of points for each of `methods`, or
    None}."""
    methods = list(methods)
    rows = []
    for one in classes:
        base = one["iou"].get(BASELINE)
        loss = [None if base is None or m not in one["iou"] else base - one["iou"][m] for m in methods]
        rows.append({"name": one["name"], "share": one["share"], "iou": base, "loss": loss})
    return rows


def to_csv(classes: list[dict[str, Any]], methods: Iterable[str]) -> str:
    """class_loss.csv: a line for each class and each of `methods`, with its IoU in percent and its loss in points."""
    text, methods = io.StringIO(), list(methods)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "pixels_percent", "method", "iou", "loss"])
    for one in losses(classes, methods):
        for method, loss in zip(methods, one["loss"]):
            if loss is not None:
                iou = one["iou"] - loss
                writer.writerow(
                    [one["name"], f"{one['share']:.3f}", method, f"{iou:.2f}", f"{round(loss, 2) + 0.0:.2f}"]
                )
    return text.getvalue()
