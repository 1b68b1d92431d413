"""Fit the scales and zeros of a weight's codes; errors are those of quant/gptq.py."""

from __future__ import annotations

from collections.abc import Callable

import torch

from segquant.quant.codes import Codes, Grid, bounds, dequantize
from segquant.quant.ranges import SMALLEST, round_ranges, round_scale, round_zero
from segquant.quant.tensors import as_float16

SHRINKS = 24  # candidate ranges for a group, from its full span down to 30 % of it
LARGE = 128  # rows of a matrix
CHUNK = 30_000_000  # elements of the largest intermediate in the least-squares step


def search(weight: torch.Tensor, importance: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each group that minimise the squared error, columns weighted by `importance` (columns,)."""
    scale, zero = _search(weight, importance, grid, as_float16)
    if grid.ranges is None:
        return scale, zero
    # Once more among the shares of the largest scales. That of a row may then be smaller.
    largest = as_float16(scale.amax(1, keepdim=True))
    scale, zero = _search(weight, importance, grid, lambda scale: round_scale(scale, grid.ranges, largest))
    return round_ranges(scale, zero, grid.bits, grid.ranges)


def _search(
    weight: torch.Tensor,
    importance: torch.Tensor,
    grid: Grid,
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`search` among scales as `rounded` gives them."""
    grouped, weights = weight.unflatten(1, (-1, grid.group_size)), importance.view(-1, grid.group_size)
    low, high = bounds(grid.bits)
    least, most = grouped.amin(2), grouped.amax(2)
    # Bounding the scale keeps the zeros within float16, or on their grid, when a group's weights are all equal.
    farthest = 1024 if grid.ranges is None else 2**grid.bits + high  # codes from the lowest zero to the highest code
    smallest = (grouped.abs().amax(2) / farthest).clamp_min(SMALLEST)
    best_error = torch.full_like(least, torch.inf)
    best_scale, best_zero = torch.ones_like(least), torch.zeros_like(least)
    span, middle = most - least, (least + most) / 2
    for shrink in torch.linspace(1, 0.3, SHRINKS).tolist():
        scale = rounded(torch.maximum(span * shrink / (high - low), smallest))
        zero = round_zero((low + high) / 2 - middle * shrink / scale, grid.bits, grid.ranges)
        scales, zeros = scale[..., None], zero[..., None]
        # In place: the largest tensors here are as large as the weight.
        codes = (grouped / scales).add_(zeros).round_().clamp_(low, high)
        difference = codes.sub_(zeros).mul_(scales).sub_(grouped)
        error = difference.square_().mul_(weights).sum(2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def refit(weight: torch.Tensor, hessian: torch.Tensor, start: Codes, grid: Grid) -> Codes:
    """Fit the scales and zeros of all groups of a row together by least squares; the codes stay fixed.

    A quantized row is linear in these unknowns: in each group it is scale * (code - mean code) + level.
    """
    rows, groups = start.scale.shape
    size = weight.shape[1] // groups
    target = (weight @ hessian).view(rows, groups, size)
    level_level = hessian.view(groups, size, groups, size).sum((1, 3)).double()
    scales, zeros = [], []
    for chunk in torch.arange(rows).split(max(1, CHUNK // (groups * weight.shape[1]))):
        codes = start.codes[chunk].view(-1, groups, size).to(weight.dtype)
        mean = codes.mean(2, keepdim=True)
        codes = codes - mean
        # (rows, groups, groups, size): the hessian times the effect of a unit of each group's scale
        effect = torch.einsum("rgk,gkn->rgn", codes, hessian.view(groups, size, -1)).unflatten(2, (groups, size))
        scale_scale = torch.einsum("rghk,rhk->rgh", effect, codes).double()
        scale_level = effect.sum(3).double()
        scale_rows = torch.cat([scale_scale, scale_level], 2)
        level_rows = torch.cat([scale_level.mT, level_level.expand(len(chunk), -1, -1)], 2)
        matrix = torch.cat([scale_rows, level_rows], 1)
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        matrix = matrix + torch.diag_embed(1e-4 * diagonal + 1e-12 * diagonal.amax(1, keepdim=True))
        right_side = torch.cat([(codes * target[chunk]).sum(2), target[chunk].sum(2)], 1).double()
        solution = _solve(matrix, right_side).to(weight.dtype)
        scale, level = solution[:, :groups], solution[:, groups:]
        scale = round_scale(torch.where(scale > 0, scale, start.scale[chunk]), grid.ranges)
        scales.append(scale)
        zeros.append(mean[..., 0] - level / scale)
    return Codes(start.codes, *round_ranges(torch.cat(scales), torch.cat(zeros), grid.bits, grid.ranges))


def _solve(matrices: torch.Tensor, right_sides: torch.Tensor) -> torch.Tensor:
    """torch.linalg.solve for matrices (rows, n, n). On several threads of a CPU, many large ones at once fail, hang or
    come out wrong (pytorch/pytorch, issue 142815)."""
    if matrices.is_cuda or matrices.shape[-1] <= LARGE:
        return torch.linalg.solve(matrices, right_sides)
    return torch.stack([torch.linalg.solve(*pair) for pair in zip(matrices, right_sides, strict=True)])


def move(weight: torch.Tensor, hessian: torch.Tensor, start: Codes, grid: Grid) -> Codes:
    """One pass of coordinate descent: set each group's scale and zero in turn to their best values on their grids.

    All else of the row stays, and so does the scale that is a row's largest, because the others are shares of it.
    """
    ranges, groups = grid.ranges, start.scale.shape[1]
    size = weight.shape[1] // groups
    scale, zero = start.scale.clone(), start.zero.clone()
    largest, first = scale.max(1)
    unit = largest / 2**ranges.scale
    gradient = (dequantize(start) - weight) @ hessian  # half the gradient of the error
    codes = start.codes.to(weight.dtype)
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        block, group_codes = hessian[columns, columns], codes[:, columns]
        # The error of scale * codes - level, with level = scale * zero, is quadratic in (scale, level).
        before = (group_codes - zero[:, group, None]) * scale[:, group, None]
        rest = gradient[:, columns] - before @ block  # what the row's other groups add to the gradient
        effect = group_codes @ block
        codes_codes, codes_level, level_level = (effect * group_codes).sum(1), effect.sum(1), block.sum()
        codes_rest, level_rest = (group_codes * rest).sum(1), rest.sum(1)
        determinant = (codes_codes * level_level - codes_level.square()).clamp_min(1e-12 * codes_codes * level_level)
        best_scale = (codes_level * level_rest - level_level * codes_rest) / determinant
        share = (best_scale / unit).nan_to_num(1.0).floor()
        best_error = torch.full_like(unit, torch.inf)
        new_scale, new_zero = scale[:, group].clone(), zero[:, group].clone()
        for offset in (None, -1, 0, 1, 2):
            tried = scale[:, group] if offset is None else (share + offset).clamp(1, 2**ranges.scale) * unit
            tried = torch.where(first == group, scale[:, group], tried)
            tried_zero = round_zero((tried * codes_level + level_rest) / level_level / tried, grid.bits, ranges)
            level = tried * tried_zero
            error = tried * (tried * codes_codes - 2 * level * codes_level + 2 * codes_rest)
            error = error + level * (level * level_level - 2 * level_rest)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            new_scale, new_zero = torch.where(better, tried, new_scale), torch.where(better, tried_zero, new_zero)
        change = (group_codes - new_zero[:, None]) * new_scale[:, None] - before
        gradient += change @ hessian[columns]
        scale[:, group], zero[:, group] = new_scale, new_zero
    return Codes(start.codes, scale, zero)
