"""The C library's allocator, told what work of many equal steps wants of it."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory(keep: bool = True) -> None:
    """Have glibc keep what is freed for the next step, or, its default, give large blocks back to the system at once.

    A forward pass on a CPU frees and asks for hundreds of megabytes, and every page that comes anew from the system
    is cleared first: a third of the time of an eager SegFormer-B0. Results do not change, nor does the peak. Does
    nothing where the C library is not glibc.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0 if keep else 65536)
        libc.mallopt(_M_TRIM_THRESHOLD, -1 if keep else 128 * 1024)
        if not keep:
            libc.malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
