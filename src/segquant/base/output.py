"""Output folders: each belongs to the command that made it, and to one process at a time; a run reads none of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from segquant import __version__
from segquant.base.errors import ConfigError
from segquant.base.files import TEMPORARY, write_json

MARKER = ".segquant.json"  # which command and version made the folder, and the process that wrote there last
_LOCK = ".segquant.lock"


def check(folder: Path, command: str, reads: Iterable[str | Path] = (), force: bool = False) -> None:
    """Raise ConfigError unless `command` may write to `folder`: it is new, empty, or the same command made it.

    With `force` it may hold anything else. No folder or file among `reads` may lie in it or around it, ever; names of
    what is not there, as of the hub, do not count.
    """
    for read in map(Path, reads):
        if read.exists() and _contain(folder, read):
            raise ConfigError(
                f"--output {folder} and {read}, which is read, contain one another: give another --output"
            )
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--output {folder} is a file: give a folder")
    if force or not folder.is_dir() or not os.listdir(folder):
        return
    if maker(folder) != command:
        what = f"what `segquant {maker(folder)}` wrote" if maker(folder) else "files that segquant did not write"
        raise ConfigError(f"--output {folder} holds {what}: give a new folder, or --force to write among them")


def maker(folder: Path) -> str | None:
    """The command that made a folder; None where none says so."""
    return _marker(folder).get("command")


@contextmanager
def claimed(folder: Path, command: str) -> Iterator[None]:
    """Mark `folder` and hold it for this process. Where the block raises, a folder that was new is gone again.

    Raises ConfigError where another process holds it.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK, timeout=0):
            for path in folder.glob(f"{TEMPORARY}*"):  # of a process that was killed
                shutil.rmtree(path, ignore_errors=True)
            write_json(folder / MARKER, {"command": command, "version": __version__, "process": os.getpid()})
            try:
                yield
            except BaseException:
                if new and {path.name for path in folder.iterdir()} <= {MARKER, _LOCK}:
                    shutil.rmtree(folder)
                    for parent in new[1:]:
                        parent.rmdir()
                raise
    except Timeout as error:
        process = _marker(folder).get("process", "unknown")
        raise ConfigError(
            f"--output {folder} is in use by process {process}: wait for it, or give another folder"
        ) from error


def holds_anything(folder: Path) -> bool:
    """Whether there is a file of this name, a dangling link, or a folder that is not empty."""
    return folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not os.listdir(folder)))


def _contain(first: Path, second: Path) -> bool:
    """Whether two paths are the same, or one is a folder around the other."""
    try:
        first, second = first.resolve(), second.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise ConfigError(f"--output {first} cannot be followed: {error}") from error
    return first == second or first in second.parents or second in first.parents


def _marker(folder: Path) -> dict:
    """What the marker says; nothing where there is none, or a file of somebody else's."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}
