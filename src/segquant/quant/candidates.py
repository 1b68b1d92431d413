"""The bits and groups that each layer may have under weights `auto`, and the bytes that they take in an artifact."""

from __future__ import annotations

import copy
import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from segquant.base.config import Auto, Override, Recipe
from segquant.base.errors import ConfigError
from segquant.quant.codes import Codes, Grid, as_tensor
from segquant.quant.coverage import rewrite
from segquant.quant.recipes import check_group_sizes, fitting, plan, quantize_conv, ranges
from segquant.quant.stored import file_bytes, stored
from segquant.quant.tensors import floats_of, round_to_float16

Choice = dict[str, Grid]  # name of a layer in the float model -> its grid


class Candidates(NamedTuple):
    """`grids` that each layer may have, by its name in the float model, and the `bytes` that each takes; `keys` of the
    layers' weights in the quantized model's state dict, and what a file holds beside them, the `rest`."""

    grids: dict[str, list[Grid]]
    bytes: dict[str, list[int]]
    keys: dict[str, str]
    shapes: dict[str, torch.Size]
    rest: dict[str, torch.Tensor]


def resolved(recipe: Auto, choice: Choice) -> Recipe:
    """The recipe that gives each layer its grid in `choice`."""
    overrides = {name: Override(f"int{grid.bits}", grid.group_size) for name, grid in choice.items()}
    return Recipe(
        f"int{min(recipe.bits)}",
        algorithm=recipe.algorithm,
        layers=recipe.layers,
        ranges=recipe.ranges,
        overrides=overrides,
        calibration=recipe.calibration,
        train=recipe.train,
    )


def candidates(model: nn.Module, recipe: Auto) -> Candidates:
    """What the layers of a float model may have. Raises ConfigError where the recipe fits no layer, or its megabytes
    no file: they lie between what the smallest candidates take and what float32 takes."""
    plain = resolved(recipe, {})
    todo = plan(model, plain)
    if not todo.layers:
        raise ConfigError("weights auto: all layers are convolutions with groups, which keep 8 bits: choose others too")
    empty = copy.deepcopy(model).cpu()
    rewrite(empty, todo.dense)
    for name in todo.convs:
        quantize_conv(empty.get_submodule(name))
    grids, sizes, keys, shapes = {}, {}, {}, {}
    state = empty.state_dict()
    for linear in todo.layers:
        name = linear.removesuffix(".linear") if linear.removesuffix(".linear") in todo.dense else linear
        keys[name] = f"{linear}.weight"
        shapes[name] = state.pop(keys[name]).shape
        inputs = shapes[name][1]
        pairs = [
            (bits, fitting(inputs, size) if bits < 8 else inputs)
            for bits in sorted(recipe.bits)
            for size in sorted(recipe.group_sizes, reverse=True)
        ]
        grids[name] = [Grid(bits, size, ranges(plain, f"int{bits}")) for bits, size in dict.fromkeys(pairs)]
        sizes[name] = [len(file_bytes(_fullest(keys[name], shapes[name], grid))) for grid in grids[name]]
    check_group_sizes(recipe.group_sizes, [columns for _, columns in shapes.values()], "group_sizes")
    round_to_float16(part for tensor in state.values() for part in floats_of(tensor))
    known = Candidates(grids, sizes, keys, shapes, stored(state, cast=False).tensors)
    _check_budget(known, recipe, sum(tensor.nbytes for tensor in model.state_dict().values()))
    return known


def smallest(known: Candidates) -> Choice:
    """The candidate of each layer that takes the fewest bytes."""
    return {name: grids[np.argmin(known.bytes[name])] for name, grids in known.grids.items()}


def file_size(known: Candidates, choice: Choice) -> int:
    """Bytes of model.safetensors with these grids, at most: a range that needs fewer bits than it may have takes
    fewer."""
    tensors = dict(known.rest)
    for name, grid in choice.items():
        tensors |= _fullest(known.keys[name], known.shapes[name], grid)
    return len(file_bytes(tensors))


def _check_budget(known: Candidates, recipe: Auto, float32: int) -> None:
    if recipe.megabytes is None:
        return
    least = file_size(known, smallest(known))
    if not least <= 1e6 * recipe.megabytes <= float32:
        limits = f"{math.ceil(least / 1e3) / 1e3} (the smallest candidates) and {float32 / 1e6:.1f} (float32)"
        raise ConfigError(f"megabytes {recipe.megabytes:g} must lie between {limits}: choose another budget")


def _fullest(key: str, shape: torch.Size, grid: Grid) -> dict[str, torch.Tensor]:
    """Zeros in place of what a file holds of a weight whose ranges need all the bits that they may have."""
    module = key.removesuffix(".weight")
    return {f"{module}{part}": torch.zeros(size, dtype=dtype) for part, (size, dtype) in _parts(shape, grid).items()}


@cache
def _parts(shape: torch.Size, grid: Grid) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Sizes and types of what a file holds of such a weight (rows, columns), by what follows its module's name."""
    rows, columns = shape
    scale, zero = (
        torch.full((rows, columns // grid.group_size), 0.7),
        torch.full((rows, columns // grid.group_size), 0.3),
    )
    if grid.ranges:
        scale.fill_(1 - 2.0**-grid.ranges.scale)
        zero.fill_(-(2.0 ** (grid.bits + 1 - grid.ranges.zero)))
    scale[:, 0] = 1
    codes = Codes(torch.zeros(shape, dtype=torch.int8), scale.half().float(), zero.half().float())
    tensors = stored({"layer.weight": as_tensor(codes, grid, torch.float32)}, cast=False).tensors
    return {name.removeprefix("layer"): (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
