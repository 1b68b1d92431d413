"""Temporary folders beside what they become. The next process removes what a killed one left of them."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

TEMPORARY = ".tmp-segquant-"  # also in .gitignore and .dvcignore
ASIDE = f"{TEMPORARY}aside"  # in a temporary folder: what its other entry replaces
# A lock may hold on one machine only, as over some network file systems, so each sweeps its own folders.
_PREFIX = f"{TEMPORARY}{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}-"
_ANY = f"{TEMPORARY}{'[0-9a-f]' * 8}-"  # of any machine; another name is the user's


@contextmanager
def temporary(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, locked by this process and removed at the end. Raises OSError.

    What was moved to ASIDE in it is put back where nothing took its place, as after Ctrl-C between two renames.
    """
    _sweep_once(Path(os.path.abspath(parent)))
    folder, lock = _make(parent)
    try:
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def sweep(parent: Path, prefix: str = _ANY) -> None:
    """Remove the temporary folders in `parent` that no process holds; what one had moved aside is put back.

    The prefix of any machine is for a `parent` in which no other machine writes.
    """
    for folder in parent.glob(f"{prefix}????????"):
        with suppress(OSError):  # held, or the file system knows no locks: stays
            lock = _lock(folder)
            _remove(folder)
            os.close(lock)


@cache
def _sweep_once(parent: Path) -> None:
    """A folder that gets thousands of files is listed once in a process."""
    sweep(parent, _PREFIX)


def _make(parent: Path) -> tuple[Path, int | None]:
    """A folder and its lock, which the system drops with the process; None where the file system knows no locks."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # another process sweeps it: unlocked it looked left behind
            continue
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # too many open files
                folder.rmdir()
                raise
            return folder, None
        if folder.exists():
            return folder, lock
        os.close(lock)


def _lock(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove(folder: Path) -> None:
    """Remove a temporary folder; where that fails, what was moved aside stays in it."""
    with suppress(OSError):
        for part in folder.iterdir():
            target = folder.parent / part.name
            if part.name != ASIDE and (folder / ASIDE).exists() and not target.exists():
                (folder / ASIDE).rename(target)
        shutil.rmtree(folder, ignore_errors=True)
