"""GPTQ: choose a weight's integer codes so that the layer's outputs change little on typical inputs.

E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022,
https://arxiv.org/abs/2210.17323. GPTQ rounds a weight's columns one at a time, the most important first, and lets
the remaining columns compensate for each rounding error. This version adds two steps. Before rounding, a search sets
the ranges, weighting columns by importance. After rounding, coordinate descent improves the codes and least squares
improves the ranges, in turn; a row accepts a change only if its error falls.

The error of a row is (w - q) H (w - q)', where q is the quantized row and H the second moment of the inputs: the mean
squared error of the row's output. Weights are (rows, columns). Scales and zeros are (rows, groups); a group is
`group_size` adjacent columns. A quantized weight is (code - zero) * scale, with codes in [-2**(bits-1), 2**(bits-1)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from segquant.quant.tensors import as_float16

BLOCK = 128  # columns whose errors are propagated together
SHRINKS = 24  # candidate ranges for a group, from its full span down to 30 % of it
CHUNK = 30_000_000  # elements of the largest intermediate in the least-squares step


class Codes(NamedTuple):
    """int8 codes (rows, columns); float scales and zeros (rows, groups), rounded to float16 where that costs little."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


def quantize_weight(
    weight: torch.Tensor, hessian: torch.Tensor, bits: int, group_size: int, *, damping: float = 0.01, rounds: int = 3
) -> Codes:
    """Quantize `weight` (rows, columns), given `hessian` (columns, columns), the second moment of the layer's inputs.

    `damping`, a share of the diagonal's mean, is added to the diagonal. A hessian of zeros gives round-to-nearest.
    `rounds` counts the alternations of least squares and coordinate descent. Raises ValueError when `group_size` does
    not divide the number of columns.
    """
    if weight.shape[1] % group_size:
        raise ValueError(f"group_size {group_size} does not divide {weight.shape[1]} columns: choose a divisor")
    identity, mean = torch.eye(len(hessian), device=hessian.device), hessian.diagonal().mean()
    hessian = hessian / mean + damping * identity if mean > torch.finfo(mean.dtype).tiny else identity
    best = _round_columns(weight, hessian, *_search_ranges(weight, hessian.diagonal(), bits, group_size), bits)
    error = errors(weight, hessian, best)
    best, error = _keep_better(weight, hessian, best, error, _descend(weight, hessian, best, bits))
    for _ in range(rounds):
        best, error = _keep_better(weight, hessian, best, error, _refit(weight, hessian, best))
        best, error = _keep_better(weight, hessian, best, error, _descend(weight, hessian, best, bits))
    return best


def dequantize(codes: Codes) -> torch.Tensor:
    """The weight (rows, columns) that the codes represent."""
    grouped = codes.codes.unflatten(1, (codes.scale.shape[1], -1)).to(codes.scale.dtype)
    return ((grouped - codes.zero[..., None]) * codes.scale[..., None]).flatten(1)


def errors(weight: torch.Tensor, hessian: torch.Tensor, codes: Codes) -> torch.Tensor:
    """The error of each row (rows,), as the module's docstring defines it."""
    difference = dequantize(codes) - weight
    return (difference @ hessian * difference).sum(1)


def bounds(bits: int) -> tuple[int, int]:
    """The smallest and the largest code."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _keep_better(
    weight: torch.Tensor, hessian: torch.Tensor, old: Codes, old_error: torch.Tensor, new: Codes
) -> tuple[Codes, torch.Tensor]:
    """Take each row from `old` or `new`, whichever has the smaller error; also return the errors (rows,)."""
    new_error = errors(weight, hessian, new)
    better = new_error < old_error
    codes = Codes(*(torch.where(better[:, None], n, o) for n, o in zip(new, old, strict=True)))
    return codes, torch.where(better, new_error, old_error)


def _search_ranges(
    weight: torch.Tensor, importance: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero of each group that minimise the squared error, columns weighted by `importance` (columns,)."""
    grouped, weights = weight.unflatten(1, (-1, group_size)), importance.view(-1, group_size)
    low, high = bounds(bits)
    least, most = grouped.amin(2), grouped.amax(2)
    # Bounding the scale keeps the zeros within float16 when a group's weights are all equal. 2**-24 is the smallest
    # positive float16.
    smallest = (grouped.abs().amax(2) / 1024).clamp_min(2.0**-24)
    best_error = torch.full_like(least, torch.inf)
    best_scale, best_zero = torch.ones_like(least), torch.zeros_like(least)
    for shrink in torch.linspace(1, 0.3, SHRINKS).tolist():
        scale = as_float16(torch.maximum((most - least) * shrink / (high - low), smallest))
        zero = as_float16(low - least * shrink / scale)
        codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(low, high)
        difference = (codes - zero[..., None]) * scale[..., None] - grouped
        error = (difference.square() * weights).sum(2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero


def _round_columns(
    weight: torch.Tensor, hessian: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int
) -> Codes:
    """The GPTQ algorithm for fixed ranges: round columns in order of importance, block by block."""
    low, high = bounds(bits)
    columns = weight.shape[1]
    order = hessian.diagonal().argsort(descending=True, stable=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order].double()))
    upper = torch.linalg.cholesky(inverse, upper=True).to(weight.dtype)
    group = order // (columns // scale.shape[1])
    scales, zeros = scale.T[group], zero.T[group]
    remaining = weight.T[order]  # transposed, so that each column lies contiguously in memory
    codes = torch.empty_like(remaining)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, propagated = remaining[start:stop], torch.empty_like(remaining[start:stop])
        for j in range(stop - start):
            i = start + j
            codes[i] = (block[j] / scales[i] + zeros[i]).round().clamp(low, high)
            difference = block[j] - (codes[i] - zeros[i]) * scales[i]
            propagated[j] = difference / upper[i, i]
            block[j + 1 :] -= propagated[j] * upper[i, i + 1 : stop, None]
        remaining[stop:] -= (propagated.T.contiguous() @ upper[start:stop, stop:]).T
    return Codes(codes[order.argsort()].T.contiguous().to(torch.int8), scale, zero)


def _descend(weight: torch.Tensor, hessian: torch.Tensor, start: Codes, bits: int) -> Codes:
    """One pass of coordinate descent: set each code in turn to its best value, given all other codes of its row."""
    low, high = bounds(bits)
    columns = weight.shape[1]
    group = torch.arange(columns, device=weight.device) // (columns // start.scale.shape[1])
    scales, zeros = start.scale.T[group], start.zero.T[group]
    difference = dequantize(start) - weight
    gradient, diagonal = difference @ hessian, hessian.diagonal()  # half the gradient of the error
    # Transposed, so that each column lies contiguously in memory
    codes, current = start.codes.T.to(weight.dtype).contiguous(), (weight + difference).T.contiguous()
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)
        block_gradient = gradient[:, first:last].T.contiguous()
        change = torch.empty_like(block_gradient)
        for j in range(last - first):
            i = first + j
            best = current[i] - block_gradient[j] / diagonal[i]
            code = (best / scales[i] + zeros[i]).round().clamp(low, high)
            change[j] = (code - codes[i]) * scales[i]
            codes[i] = code
            block_gradient[j + 1 :] += change[j] * hessian[i, first + j + 1 : last, None]
        gradient += change.T.contiguous() @ hessian[first:last]
    return Codes(codes.T.contiguous().to(torch.int8), start.scale, start.zero)


def _refit(weight: torch.Tensor, hessian: torch.Tensor, start: Codes) -> Codes:
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
        solution = torch.linalg.solve(matrix, right_side).to(weight.dtype)
        scale, level = solution[:, :groups], solution[:, groups:]
        scale = as_float16(torch.where(scale > 0, scale, start.scale[chunk]))
        scales.append(scale)
        zeros.append(as_float16(mean[..., 0] - level / scale))
    return Codes(start.codes, torch.cat(scales), torch.cat(zeros))
