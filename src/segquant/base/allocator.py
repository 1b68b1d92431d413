"""Memory: glibc's allocator tuned for work that repeats similar steps, and weights at one alignment."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
_ALIGNMENT = 64  # bytes: a cache line, and what torch allocates at


def keep_freed_memory(keep: bool = True) -> None:
    """Make glibc keep freed memory for the next step; `keep=False` restores its default.

    By default glibc returns large blocks to the system at once, and the system clears every page that it hands out
    again. A forward pass on a CPU allocates hundreds of megabytes, so clearing takes a third of the time of an eager
    SegFormer-B0. Results and peak memory stay the same. Does nothing where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0 if keep else 65536)
        libc.mallopt(_M_TRIM_THRESHOLD, -1 if keep else 128 * 1024)
        if not keep:
            libc.malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy at a multiple of 64 bytes where it lies elsewhere in memory.

    safetensors maps a file, so a weight lies wherever its bytes stand there. A product of a matrix and a vector (a 1x1
    convolution of a pooled image) adds up in another order where the matrix is not at a multiple of 16 bytes: the same
    weights then give other last bits.
    """
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


def align(model: nn.Module) -> nn.Module:
    """Make every tensor of `model` `aligned`, in place, but for torchao's, whose parts torch allocated; return `model`.

    Artifacts load like this. A float model does not, as calibration is to give the bytes that it has always given.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not hasattr(tensor, "qdata"):
            tensor.data = aligned(tensor.data)
    return model
