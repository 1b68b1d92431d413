"""What training did: each class before and after, and both laid over the photographs."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segquant.config import Method
from segquant.report.tables import BASELINE


def trained(recipes: Mapping[str, Method], measured: Mapping[str, Any]) -> dict[str, list[str]]:
    """Each measured method that trains, and those to compare it with: float32, its own recipe untrained, itself."""
    found = {}
    for name in measured:
        recipe = recipes[name]
        if recipe.train:
            start = [other for other in measured if recipes[other] == replace(recipe, train=None)]
            found[name] = [one for one in (BASELINE, *start, name) if one in measured]
    return found


def class_table(folder: str | Path, methods: list[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and a row for each class, most frequent first: its share of labelled pixels, and IoU and accuracy in
    percent by each of `methods`, whose classes.csv lie in `folder`/METHOD/."""
    by_class: dict[str, dict[str, dict[str, str]]] = {}
    for method in methods:
        with open(Path(folder) / method / "classes.csv", newline="") as file:
            for row in csv.DictReader(file):
                by_class.setdefault(row["name"], {})[method] = row
    pixels = {name: int(next(iter(rows.values()))["pixels"]) for name, rows in by_class.items()}
    total = max(1, sum(pixels.values()))
    headings = ["class", "pixels %", *(f"{kind} {method}" for kind in ("IoU", "acc") for method in methods)]
    table = []
    for name in sorted(by_class, key=lambda name: -pixels[name]):
        values = [by_class[name].get(method, {}).get(key, "") for key in ("iou", "accuracy") for method in methods]
        numbers = [f"{100 * float(value):.1f}" if value else "" for value in values]
        table.append([name, f"{100 * pixels[name] / total:.2f}", *numbers])
    return headings, table
