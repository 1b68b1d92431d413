"""Communication between the processes (ranks) that `torchrun` starts; without torchrun there is one rank.

Only several ranks import torch here: a report takes a third of the time without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")


def ranks() -> tuple[int, int]:
    """(rank, number of ranks) of this process; (0, 1) without torchrun."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join() -> None:
    """Connect this process with the other ranks, if it is not connected yet."""
    if ranks()[1] == 1:
        return
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(days=7))  # wait for the slowest


def from_first(make: Callable[[], T]) -> T:
    """Call `make` on rank 0 and return its result on every rank."""
    rank, world = ranks()
    result = [make() if rank == 0 else None]
    if world == 1:
        return result[0]
    import torch
    from torch import distributed

    join()
    distributed.broadcast_object_list(result, 0, device=torch.device("cpu"))
    return result[0]


def mean(value: float) -> float:
    """The mean of `value` over all ranks."""
    if ranks()[1] == 1:
        return value
    import torch
    from torch import distributed

    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total)
    return float(total) / ranks()[1]
