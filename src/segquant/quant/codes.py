"""A weight's integer codes, their ranges, and the weight that they represent: (code - zero) * scale.

Weights are (rows, columns). Scales and zeros are (rows, groups); a group is `group_size` adjacent columns. Codes of b
bits lie in [-2**(b-1), 2**(b-1)).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torchao.quantization import IntxUnpackedToInt8Tensor

from segquant.base.recipes import Ranges


class Grid(NamedTuple):
    """What the codes of a layer are: their bits, adjacent columns that share a range, and the bits of these ranges
    (None: float16)."""

    bits: int
    group_size: int
    ranges: Ranges | None = None


class Codes(NamedTuple):
    """int8 codes (rows, columns); float scales and zeros (rows, groups), as quant/ranges.py rounds them."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


def dequantize(codes: Codes) -> torch.Tensor:
    """The weight (rows, columns) that the codes represent."""
    grouped = codes.codes.unflatten(1, (codes.scale.shape[1], -1)).to(codes.scale.dtype)
    return ((grouped - codes.zero[..., None]) * codes.scale[..., None]).flatten(1)


def nearest(weight: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> Codes:
    """The code nearest to each weight, in ranges (rows, groups)."""
    grouped = weight.unflatten(1, (scale.shape[1], -1))
    codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(*bounds(bits))
    return Codes(codes.flatten(1).to(torch.int8), scale, zero)


def as_tensor(codes: Codes, grid: Grid, dtype: torch.dtype, dynamic: bool = False) -> IntxUnpackedToInt8Tensor:
    """The codes as torchao's tensor, a weight of `dtype`; `dynamic` quantizes the other operand of its products."""
    return IntxUnpackedToInt8Tensor(
        *codes,
        getattr(torch, f"int{grid.bits}"),
        (1, grid.group_size),
        dtype,
        "int8_asym_per_token" if dynamic else None,
    )


def errors(weight: torch.Tensor, hessian: torch.Tensor, codes: Codes) -> torch.Tensor:
    """The error of each row (rows,), as quant/gptq.py defines it."""
    difference = dequantize(codes) - weight
    return (difference @ hessian * difference).sum(1)


def bounds(bits: int) -> tuple[int, int]:
    """The smallest and the largest code."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
