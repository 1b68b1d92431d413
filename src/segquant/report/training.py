"""What training did: each class before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from segquant.base.config import Method
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


def class_table(classes: list[dict[str, Any]], methods: list[str]) -> tuple[list[str], list[list[str]]]:
    """Headings and a row for each of `classes.read_classes`: its share of labelled pixels, and IoU and accuracy in
    percent by each of `methods`."""
    headings = ["class", "pixels %", *(f"{kind} {method}" for kind in ("IoU", "acc") for method in methods)]
    table = []
    for one in classes:
        values = [one[key].get(method) for key in ("iou", "accuracy") for method in methods]
        numbers = ["" if value is None else f"{value:.1f}" for value in values]
        table.append([one["name"], f"{one['share']:.2f}", *numbers])
    return headings, table
