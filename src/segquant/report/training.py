"""What training did: each class before and after."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from segquant.base.config import Method
from segquant.report.classes import ClassResult
from segquant.report.columns import number
from segquant.report.results import BASELINE


def trained(recipes: Mapping[str, Method], methods: Collection[str]) -> dict[str, list[str]]:
    """{method that trains: [float32, the method of the same recipe without training, itself]}, of `methods` alone."""
    compared = {}
    for method in methods:
        if recipes[method].train:
            untrained = replace(recipes[method], train=None)
            start = [other for other in methods if recipes[other] == untrained]
            compared[method] = [name for name in (BASELINE, *start, method) if name in methods]
    return compared


def class_table(classes: Sequence[ClassResult], methods: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and a row for each class: its share of the labelled pixels, and IoU and accuracy in percent by each of
    `methods`."""
    headings = ["class", "pixels %", *(f"{kind} {method}" for kind in ("IoU", "acc") for method in methods)]
    rows = []
    for result in classes:
        scores = [by_method.get(method) for by_method in (result.iou, result.accuracy) for method in methods]
        rows.append([result.name, number(result.share, 2), *(number(score, 1) for score in scores)])
    return headings, rows
