"""Pack signed codes of 1 to 8 bits into exactly that many bits each."""

from __future__ import annotations

import math

import numpy as np
import torch


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack int8 `codes` of any shape, each in [-2**(bits-1), 2**(bits-1)), into flat uint8.

    The codes are shifted to be unsigned and form one little-endian bit stream in row-major order: a byte holds two
    codes of 4 bits (the first in its low half) or four of 2 bits. Raises ValueError for a code out of range.
    """
    half = 1 << (bits - 1)
    if codes.numel() and not (-half <= int(codes.min()) and int(codes.max()) < half):
        raise ValueError(f"codes do not fit {bits} bits: they range from {int(codes.min())} to {int(codes.max())}")
    unsigned = (codes.to(torch.int16) + half).to(torch.uint8).numpy().reshape(-1, 1)
    stream = np.unpackbits(unsigned, axis=1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(stream, bitorder="little"))


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Reverse `pack`: int8 codes of `shape`. Raises ValueError when the number of bytes does not fit the shape."""
    count = math.prod(shape)
    if packed.numel() != -(-count * bits // 8):
        raise ValueError(f"{packed.numel()} bytes do not hold {count} codes of {bits} bits")
    stream = np.unpackbits(packed.numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    unsigned = np.packbits(stream, axis=1, bitorder="little").reshape(shape)
    return (torch.from_numpy(unsigned).to(torch.int16) - (1 << (bits - 1))).to(torch.int8)
