"""Scales and zeros of a few bits each.

A group's scale is a share of its row's largest, which is stored once as float16: k / 2**width with k from 1 to
2**width. A zero lies on a grid in units of one code, which is the same for all layers of equal bits. Both fall on these
grids while they are fitted and trained (`round_ranges`), so an artifact stores them without a further error. What is on
a grid shows in the values themselves (`shares_of`, `steps_of`): nothing else has to say so.

llama.cpp stores the ranges of its 2 to 6-bit formats in a similar way, as integers of 4 to 8 bits in a super-block.
"""

from __future__ import annotations

import torch

from segquant.base.recipes import Ranges
from segquant.quant.tensors import as_float16

WIDEST = 8  # bits of a scale's or a zero's integer
SMALLEST = 2.0**-24  # the smallest scale: float16 has no smaller positive number


def round_ranges(
    scale: torch.Tensor, zero: torch.Tensor, bits: int, ranges: Ranges | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros (rows, groups) for codes of `bits` as an artifact stores them: float16 without `ranges`."""
    return round_scale(scale, ranges), round_zero(zero, bits, ranges)


def round_scale(scale: torch.Tensor, ranges: Ranges | None, largest: torch.Tensor | None = None) -> torch.Tensor:
    """Each scale (rows, groups) as a share of `largest` (rows, 1), by default the largest of its row in float16.

    No scale becomes zero: what is below `SMALLEST` becomes `SMALLEST` first.
    """
    scale = scale.clamp_min(SMALLEST)
    if ranges is None:
        return as_float16(scale)
    if largest is None:
        exact = scale.amax(1, keepdim=True)
        largest = as_float16(exact)
        # The largest is the whole of itself, also where it is so small that float16 moves it by more than a share.
        scale = torch.where(scale == exact, largest, scale)
    return from_shares(largest, _shares(scale, largest, ranges.scale), ranges.scale)


def round_zero(zero: torch.Tensor, bits: int, ranges: Ranges | None) -> torch.Tensor:
    """Each zero as a multiple of 2**(bits + 1 - ranges.zero), from -2**bits up to below 2**bits."""
    if ranges is None:
        return as_float16(zero)
    return from_steps(_steps(zero, bits, ranges.zero), bits, ranges.zero)


def from_shares(largest: torch.Tensor, shares: torch.Tensor, width: int) -> torch.Tensor:
    """Scales (rows, groups) from the largest of each row (rows, 1) and shares of it, from 1 to 2**width."""
    return largest * (shares.to(largest.dtype) / 2**width)


def from_steps(steps: torch.Tensor, bits: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Zeros for codes of `bits` from signed integers of `width` bits."""
    return steps.to(dtype) * _step(bits, width)


def shares_of(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int] | None:
    """(largest of each row, shares, their width) of scales (rows, groups) on such a grid, the coarsest; else None."""
    largest = scale.amax(1, keepdim=True)
    for width in range(1, WIDEST + 1):
        shares = _shares(scale, largest, width)
        if torch.equal(from_shares(largest, shares, width), scale):
            return largest, shares, width
    return None


def steps_of(zero: torch.Tensor, bits: int) -> tuple[torch.Tensor, int] | None:
    """(signed integers, their width) of zeros for codes of `bits` on such a grid, the coarsest; else None."""
    for width in range(1, WIDEST + 1):
        steps = _steps(zero, bits, width)
        if torch.equal(from_steps(steps, bits, width), zero):
            return steps, width
    return None


def _shares(scale: torch.Tensor, largest: torch.Tensor, width: int) -> torch.Tensor:
    return (scale / largest * 2**width).round().clamp(1, 2**width)


def _steps(zero: torch.Tensor, bits: int, width: int) -> torch.Tensor:
    half = 2 ** (width - 1)
    return (zero / _step(bits, width)).round().clamp(-half, half - 1)


def _step(bits: int, width: int) -> float:
    return 2.0 ** (bits + 1 - width)
