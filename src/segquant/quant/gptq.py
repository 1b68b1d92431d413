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

import torch

from segquant.quant import fit
from segquant.quant.codes import Codes, Grid, bounds, dequantize, errors

BLOCK = 128  # columns whose errors are propagated together


@torch.no_grad()
def quantize_weight(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, *, damping: float = 0.01, rounds: int = 3
) -> Codes:
    """Quantize `weight` (rows, columns), given `hessian` (columns, columns), the second moment of the layer's inputs.

    `damping`, a share of the diagonal's mean, is added to the diagonal. A hessian of zeros gives round-to-nearest.
    `rounds` counts the alternations of least squares and coordinate descent. Raises ValueError when `group_size` does
    not divide the number of columns.
    """
    if weight.shape[1] % grid.group_size:
        raise ValueError(f"group_size {grid.group_size} does not divide {weight.shape[1]} columns: choose a divisor")
    identity, mean = torch.eye(len(hessian), device=hessian.device), hessian.diagonal().mean()
    hessian = hessian / mean + damping * identity if mean > torch.finfo(mean.dtype).tiny else identity
    best = _round_columns(weight, hessian, *fit.search(weight, hessian.diagonal(), grid), grid.bits)
    error = errors(weight, hessian, best)
    best, error = _keep_better(weight, hessian, best, error, _descend(weight, hessian, best, grid.bits))
    for _ in range(rounds):
        best, error = _keep_better(weight, hessian, best, error, fit.refit(weight, hessian, best, grid))
        if grid.ranges:
            best, error = _keep_better(weight, hessian, best, error, fit.move(weight, hessian, best, grid))
        best, error = _keep_better(weight, hessian, best, error, _descend(weight, hessian, best, grid.bits))
    return best


def _keep_better(
    weight: torch.Tensor, hessian: torch.Tensor, old: Codes, old_error: torch.Tensor, new: Codes
) -> tuple[Codes, torch.Tensor]:
    """Take each row from `old` or `new`, whichever has the smaller error; also return the errors (rows,)."""
    new_error = errors(weight, hessian, new)
    better = new_error < old_error
    codes = Codes(*(torch.where(better[:, None], n, o) for n, o in zip(new, old, strict=True)))
    return codes, torch.where(better, new_error, old_error)


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
        # Iteration makes all views at once. With them, and in place, a column takes a quarter less time.
        known = (part[start:stop] for part in (scales, zeros, codes))
        each = zip(*known, block, propagated, upper[start:stop, start:stop, None], strict=True)
        for j, (scale_j, zero_j, code, value, difference, influence) in enumerate(each):
            torch.div(value, scale_j, out=code).add_(zero_j).round_().clamp_(low, high)
            torch.sub(code, zero_j, out=difference).mul_(scale_j)
            torch.sub(value, difference, out=difference).div_(influence[j])
            block[j + 1 :] -= difference * influence[j + 1 :]
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
        known = (part[first:last] for part in (scales, zeros, codes, current, diagonal))
        each = zip(*known, block_gradient, change, hessian[first:last, first:last, None], strict=True)
        for j, (scale, zero, code, value, curvature, slope, step, influence) in enumerate(each):
            best = value - slope / curvature
            best.div_(scale).add_(zero).round_().clamp_(low, high)
            torch.sub(best, code, out=step).mul_(scale)
            code.copy_(best)
            block_gradient[j + 1 :] += step * influence[j + 1 :]
        gradient += change.T.contiguous() @ hessian[first:last]
    return Codes(codes.T.contiguous().to(torch.int8), start.scale, start.zero)
