"""Process shards one by one: a killed run resumes, and the processes of `torchrun` share the shards."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from segquant.base.files import write_bytes
from segquant.base.progress import progress
from segquant.base.ranks import join, ranks
from segquant.data.shards import Shard

log = logging.getLogger(__name__)
_DIGEST = hashlib.sha256().digest_size


@contextmanager
def kept(folder: str | Path) -> Iterator[Path]:
    """Keep the finished shards in `folder` if the block fails, and remove the folder once the block succeeds."""
    yield Path(folder)
    if ranks()[0] == 0:
        shutil.rmtree(folder, ignore_errors=True)


def over_shards(
    work: Callable[[int, Shard, Callable[[int], Any]], bytes],
    shards: Sequence[Shard],
    folder: Path,
    identity: Any,
    desc: str,
) -> Iterator[bytes]:
    """Yield the result of `work` (shard number, shard, progress callback) for each shard, in order, on rank 0.

    The other ranks yield nothing. Each result is written to `folder`, complete or not at all, as soon as it is ready. A
    later run reuses it if the shard, this package's code and `identity` (everything else that the result depends on)
    are unchanged.
    """
    rank, world = ranks()
    join()
    keys = [json.dumps([identity, shard.sha256, _code(), torch.__version__]) for shard in shards]
    paths = [folder / f"{n:05d}-{hashlib.sha256(key.encode()).hexdigest()[:32]}" for n, key in enumerate(keys)]
    mine = range(rank, len(shards), world)
    missing = [number for number in mine if _read(paths[number]) is None]
    if len(missing) < len(mine):
        reused = len(mine) - len(missing)
        log.info("%s: reusing %d of %d shards of a run that was stopped", desc, reused, len(mine))
    total, remaining = (sum(shards[number].rows for number in numbers) for numbers in (mine, missing))
    with progress(total=total, initial=total - remaining, desc=desc, unit="image", quiet=rank > 0) as bar:
        for number in missing:
            result = work(number, shards[number], bar.update)
            write_bytes(paths[number], hashlib.sha256(result).digest() + result)
    for number, path in enumerate(paths):
        owner = number % world
        if rank == owner == 0:
            yield _read(path)
        elif rank == 0:
            box = [None]
            distributed.recv_object_list(box, owner, device=torch.device("cpu"))
            yield box[0]
        elif rank == owner:
            distributed.send_object_list([_read(path)], 0, device=torch.device("cpu"))


def _read(path: Path) -> bytes | None:
    """A stored result, or None when the file is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data[_DIGEST:] if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST] else None


@cache
def _code() -> str:
    """A digest of this package's source code: results of other code are not reused."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
