"""The processes that `torchrun` starts: which one this is, and what they give each other."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


def ranks() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says; (0, 1) without it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def join() -> None:
    """Connect this process with the others of torchrun, once; nothing without it. They wait for the slowest."""
    if ranks()[1] > 1 and not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(days=7))


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank."""
    rank, world = ranks()
    box = [make() if rank == 0 else None]
    if world > 1:
        join()
        distributed.broadcast_object_list(box, 0, device=torch.device("cpu"))
    return box[0]


def mean(value: float) -> float:
    """The mean of every rank's `value`."""
    if ranks()[1] == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total)
    return float(total) / ranks()[1]
