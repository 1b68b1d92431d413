"""GPTQ: integer codes of a weight that keep its layer's outputs, given what the layer's inputs look like.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
2022, https://arxiv.org/abs/2210.17323: the columns of a weight are rounded one by one, the most important
ones first, and each one's error is made up for by those still to come. Here the ranges are set beforehand,
by a search that weighs columns by importance; afterwards codes and ranges are improved in turn, the codes by
coordinate descent and the ranges by least squares, and a row keeps a change only if its error falls.

The error of a row is (w - w') H (w - w')', H being the inputs' second moment: the mean squared error of the
row's output. Weights are (rows, columns); scales and zeros are (rows, groups), a group being `group_size`
neighbouring columns; a weight is (code - zero) * scale with codes in [-2**(bits-1), 2**(bits-1)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from segquant.quant.tensors import as_float16

BLOCK = 128  # columns whose errors are passed on together
SHRINKS = 24  # ranges tried for a group, from its whole span down to 30 % of it
CHUNK = 30_000_000  # numbers in the largest intermediate of the least squares


class Codes(NamedTuple):
    """int8 codes (rows, columns); float scales and zeros (rows, groups) that float16 holds where it can."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


def quantize_weight(
    weight: torch.Tensor, hessian: torch.Tensor, bits: int, group_size: int, *, damping: float = 0.01, rounds: int = 3
) -> Codes:
    """Codes of `weight` (rows, columns) under `hessian` (columns, columns), the second moment of its inputs.

    `damping` is added to the diagonal as a share of its mean. A hessian of zeros means plain rounding.
    Raises ValueError when `group_size` does not divide the columns.
    """
    if weight.shape[1] % group_size:
        raise ValueError(f"groups of {group_size} do not fit {weight.shape[1]} columns")
    identity, mean = torch.eye(len(hessian), device=hessian.device), hessian.diagonal().mean()
    hessian = hessian / mean + damping * identity if mean > torch.finfo(mean.dtype).tiny else identity
    best = _round_columns(weight, hessian, *_search_ranges(weight, hessian.diagonal(), bits, group_size), bits)
    error = errors(weight, hessian, best)
    best, error = _better(weight, hessian, best, error, _descend(weight, hessian, best, bits))
    for _ in range(rounds):
        best, error = _better(weight, hessian, best, error, _refit(weight, hessian, best))
        best, error = _better(weight, hessian, best, error, _descend(weight, hessian, best, bits))
    return best


def dequantize(codes: Codes) -> torch.Tensor:
    """The weight (rows, columns) that the codes stand for."""
    grouped = codes.codes.unflatten(1, (codes.scale.shape[1], -1)).to(codes.scale.dtype)
    return ((grouped - codes.zero[..., None]) * codes.scale[..., None]).flatten(1)


def errors(weight: torch.Tensor, hessian: torch.Tensor, codes: Codes) -> torch.Tensor:
    """The error of each row (rows,)."""
    difference = dequantize(codes) - weight
    return (difference @ hessian * difference).sum(1)


def bounds(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _better(
    weight: torch.Tensor, hessian: torch.Tensor, old: Codes, error: torch.Tensor, new: Codes
) -> tuple[Codes, torch.Tensor]:
    """Each row from whichever of the two has the smaller error, and that error; `error` is the old one's."""
    found = errors(weight, hessian, new)
    better = found < error
    codes = Codes(*(torch.where(better[:, None], n, o) for n, o in zip(new, old, strict=True)))
    return codes, torch.where(better, found, error)


def _search_ranges(
    weight: torch.Tensor, importance: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each group for the least squared error, columns weighted by `importance` (columns,)."""
    grouped, weights = weight.unflatten(1, (-1, group_size)), importance.view(-1, group_size)
    low, high = bounds(bits)
    least, most = grouped.amin(2), grouped.amax(2)
    # Keeps zeros small enough for float16 where a group's weights are all alike; 2**-24 is its least number.
    smallest = (grouped.abs().amax(2) / 1024).clamp_min(2.0**-24)
    best_error = torch.full_like(least, torch.inf)
    best_scale, best_zero = torch.ones_like(least), torch.zeros_like(least)
    for shrink in torch.linspace(1, 0.3, SHRINKS).tolist():
        scale = as_float16(torch.maximum((most - least) * shrink / (high - low), smallest))
        zero = as_float16(low - least * shrink / scale)
        codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(low, high)
        off = (codes - zero[..., None]) * scale[..., None] - grouped
        error = (off.square() * weights).sum(2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _round_columns(
    weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> Codes:
    """GPTQ itself, on given ranges: columns in order of importance, block by block."""
    low, high = bounds(bits)
    columns = weight.shape[1]
    order = hessian.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order].double()))
    upper = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    group = order // (columns // scale.shape[1])
    scales, zeros = scale.T[group], zero.T[group]
    left = weight.T[order]  # columns as rows from here on: what is read together lies together
    codes = torch.empty_like(left)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, passed = left[start:stop], torch.empty_like(left[start:stop])
        for j in range(stop - start):
            i = start + j
            codes[i] = (block[j] / scales[i] + zeros[i]).round().clamp(low, high)
            off = block[j] - (codes[i] - zeros[i]) * scales[i]
            passed[j] = off / upper[i, i]
            block[j + 1 :] -= passed[j] * upper[i, i + 1 : stop, None]
        left[stop:] -= (passed.T.contiguous() @ upper[start:stop, stop:]).T
    return Codes(codes[order.argsort()].T.contiguous().to(torch.int8), scale, zero)


def _descend(weight: torch.Tensor, hessian: torch.Tensor, start: Codes, bits: int) -> Codes:
    """One pass of coordinate descent: each code in turn the best one given all the others of its row."""
    low, high = bounds(bits)
    columns = weight.shape[1]
    group = torch.arange(columns, device=weight.device) // (columns // start.scale.shape[1])
    scales, zeros = start.scale.T[group], start.zero.T[group]
    off = dequantize(start) - weight
    slope, diagonal = off @ hessian, hessian.diagonal()
    codes, aim = start.codes.T.to(weight.dtype).contiguous(), (weight + off).T.contiguous()  # columns as rows
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        near = slope[:, first:last].T.contiguous()
        moved = torch.empty_like(near)
        for j in range(last - first):
            i = first + j
            code = ((aim[i] - near[j] / diagonal[i]) / scales[i] + zeros[i]).round().clamp(low, high)
            moved[j] = (code - codes[i]) * scales[i]
            codes[i] = code
            near[j + 1 :] += moved[j] * hessian[i, first + j + 1 : last, None]
        slope += moved.T.contiguous() @ hessian[first:last]
    return Codes(codes.T.contiguous().to(torch.int8), start.scale, start.zero)


def _refit(weight: torch.Tensor, hessian: torch.Tensor, start: Codes) -> Codes:
    """Scales and zeros of all groups of a row at once by least squares, given its codes.

    A row is linear in them: w' = sum over groups of scale * (code - mean code) + level.
    """
    rows, groups = start.scale.shape
    size = weight.shape[1] // groups
    aim = (weight @ hessian).view(rows, groups, size)
    levels = hessian.view(groups, size, groups, size).sum((1, 3)).double()
    scales, zeros = [], []
    for some in torch.arange(rows).split(max(1, CHUNK // (groups * weight.shape[1]))):
        codes = start.codes[some].view(-1, groups, size).to(weight.dtype)
        mean = codes.mean(2, keepdim=True)
        codes = codes - mean
        # (rows, groups, columns): what a unit of each scale does, seen through the hessian
        seen = torch.einsum("rgk,gkn->rgn", codes, hessian.view(groups, size, -1)).unflatten(2, (groups, size))
        both = seen.sum(3).double()
        matrix = torch.cat(
            [
                torch.cat([torch.einsum("rghk,rhk->rgh", seen, codes).double(), both], 2),
                torch.cat([both.mT, levels.expand(len(some), -1, -1)], 2),
            ],
            1,
        )
        diagonal = matrix.diagonal(dim1=1, dim2=2)
        matrix = matrix + torch.diag_embed(1e-4 * diagonal + 1e-12 * diagonal.amax(1, keepdim=True))
        wanted = torch.cat([(codes * aim[some]).sum(2), aim[some].sum(2)], 1).double()
        solved = torch.linalg.solve(matrix, wanted).to(weight.dtype)
        scale, level = solved[:, :groups], solved[:, groups:]
        scale = as_float16(torch.where(scale > 0, scale, start.scale[some]))
        scales.append(scale)
        zeros.append(as_float16(mean[..., 0] - level / scale))
    return Codes(start.codes, torch.cat(scales), torch.cat(zeros))
