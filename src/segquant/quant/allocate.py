"""Weights `auto`: the bits and groups of each layer for which the predictions change least within a budget.

The change is the divergence from the float model's predictions that the rounding errors of a layer's weights cause
(quant/influence.py). A solver minimizes its sum over the layers. What errors of different layers do together is
reported and not minimized: each layer that gptq quantizes afterwards makes up for errors of those before it.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag
from torch import nn

from segquant.base.config import Auto, Recipe
from segquant.base.errors import ConfigError
from segquant.quant.candidates import Candidates, Choice, candidates, file_size, resolved, smallest
from segquant.quant.codes import Grid, dequantize, nearest
from segquant.quant.fit import search
from segquant.quant.influence import influence
from segquant.quant.points import Points
from segquant.quant.recipes import quantize

log = logging.getLogger(__name__)
TRIES = 6  # of sizes, to keep a budget in points


class Allocation(NamedTuple):
    """The recipe that a budget gives, and what quantization.json says about it."""

    recipe: Recipe
    info: dict[str, Any]


def allocate(model: nn.Module, recipe: Auto, images: torch.Tensor, points: Points | None = None) -> Allocation:
    """Choose the grid of each layer of a float model; `images` (N, 3, H, W) are model inputs for calibration.

    `points` are required for a budget in points: quantized models are then scored, and the smallest of those that keep
    it is chosen. Raises ConfigError where none does.
    """
    known = candidates(model, recipe)
    errors = {name: _errors(model.get_submodule(name).weight, grids) for name, grids in known.grids.items()}
    products = {name: values.numpy() for name, values in influence(model, images, errors).items()}
    del errors
    costs = {name: np.square(values).mean(1) for name, values in products.items()}
    if recipe.megabytes is not None:
        choice, tried = _within(known, costs, 1e6 * recipe.megabytes), {}
    else:
        choice, tried = _keeping(model, recipe, known, costs, images, points)
    info = {**_described(known, choice, costs, products), **tried}
    log.info("%.3f MB, with a divergence of %.2g nats a pixel", info["bytes"] / 1e6, info["divergence"])
    return Allocation(resolved(recipe, choice), info)


@torch.no_grad()
def _errors(weight: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
    """The errors (grids, rows, columns) of a weight that is rounded to nearest; bfloat16, to save memory."""
    weight = weight.flatten(1)
    ones = torch.ones_like(weight[0])
    rounded = [nearest(weight, *search(weight, ones, grid), grid.bits) for grid in grids]
    return torch.stack([(dequantize(codes) - weight).bfloat16() for codes in rounded])


def _within(known: Candidates, costs: Mapping[str, np.ndarray], budget: float) -> Choice:
    """The choice of least cost whose file has at most `budget` bytes, which is enough for the smallest candidates."""
    space = budget - file_size(known, {})
    while True:
        picks = solve([*costs.values()], [*known.bytes.values()], space)
        if picks is None:
            return smallest(known)
        choice = {name: grids[k] for (name, grids), k in zip(known.grids.items(), picks, strict=True)}
        excess = file_size(known, choice) - budget
        if excess <= 0:
            return choice
        taken = sum(sizes[k] for sizes, k in zip(known.bytes.values(), picks, strict=True))
        # The file's header is not quite the sum of its parts'. From `space` alone, the same choice would come again.
        space = min(space, taken) - excess


def solve(costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[int]], space: float) -> list[int] | None:
    """The item of each group that together cost least within `space`; None where the smallest ones do not fit."""
    if sum(map(min, sizes)) > space:
        return None
    cost, size = np.concatenate(costs), np.concatenate(sizes)
    each = LinearConstraint(block_diag([np.ones((1, len(group))) for group in costs]), 1, 1)
    fits = LinearConstraint(size[None] / max(space, 1), -np.inf, 1)
    scaled = 1e6 * cost / max(cost.max(), np.finfo(float).tiny)  # the solver's gaps are absolute too
    options = {"integrality": np.ones(len(cost)), "bounds": Bounds(0, 1), "options": {"mip_rel_gap": 0}}
    with _stdout_to_stderr():
        taken = milp(scaled, constraints=[each, fits], **options).x
    ends = np.cumsum([len(group) for group in costs])[:-1]
    return [int(part.argmax()) for part in np.split(taken, ends)]


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """HiGHS prints a line for its developers at times, whatever its options (jump-dev/HiGHS.jl, issue 312)."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def _keeping(
    model: nn.Module,
    recipe: Auto,
    known: Candidates,
    costs: Mapping[str, np.ndarray],
    images: torch.Tensor,
    points: Points,
) -> tuple[Choice, dict[str, Any]]:
    """The smallest choice found that keeps recipe.points, and {"measure": of what, "tried": sizes and losses}."""
    exact, tried, untrained = points.score(model), [], replace(recipe, train=None)

    def keeps(choice: Choice) -> bool:
        changed = copy.deepcopy(model)
        quantize(changed, resolved(untrained, choice), images.device, images)
        lost, size = exact - points.score(changed), file_size(known, choice)
        tried.append({"bytes": size, "points": lost})
        log.info("%.3f MB lose %.2f points of %s on train images", size / 1e6, lost, points.measure)
        return lost <= recipe.points

    best = _within(known, costs, math.inf)
    low, high = file_size(known, smallest(known)), file_size(known, best)
    if not keeps(best):
        lost = tried[-1]["points"]
        raise ConfigError(
            f"points {recipe.points:g}: the most accurate candidates lose {lost:.2f} of {points.measure}: allow more"
        )
    for _ in range(TRIES):
        choice = _within(known, costs, math.sqrt(low * high))
        if keeps(choice):
            best, high = choice, file_size(known, choice)
        else:
            low = math.sqrt(low * high)
    return best, {"measure": points.measure, "tried": tried}


def _described(
    known: Candidates, choice: Choice, costs: Mapping[str, np.ndarray], products: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The choice as JSON: each layer's grid, the divergence it causes alone, and that of the smallest candidate."""
    least, layers, together = smallest(known), {}, 0.0
    for name, grid in choice.items():
        at = known.grids[name].index
        together = together + products[name][at(grid)]
        layers[name] = {
            "bits": grid.bits,
            "group_size": grid.group_size,
            "divergence": float(costs[name][at(grid)]),
            "smallest": float(costs[name][at(least[name])]),
        }
    return {
        "bytes": file_size(known, choice),
        "divergence": sum(layer["divergence"] for layer in layers.values()),
        "divergence_with_interactions": float(np.square(together).mean()),
        "layers": layers,
    }
