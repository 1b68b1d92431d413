"""Output folders: each belongs to the command that made it, and to one process at a time; a run reads none of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout

from segquant import __version__
from segquant.base.errors import ConfigError, SegquantError
from segquant.base.files import read_json, watched, write_json, write_text
from segquant.base.temporary import TEMPORARY, sweep
from segquant.base.text import is_utf8

MARKER = ".segquant.json"  # which command and version made the folder, and the process that wrote there last
_LOCK = ".segquant.lock"
_WRITTEN = ".segquant.files"  # the names of the files that segquant wrote, one a line, as JSON


def check(folder: Path, command: str, reads: Iterable[str | Path] = (), force: bool = False) -> None:
    """Raise ConfigError unless `command` may write to `folder`: it is new, empty, or the same command made it.

    With `force` it may hold anything else. No folder or file among `reads` may lie in it or around it, ever; names of
    what is not there, as of the hub, do not count.
    """
    if not is_utf8(str(folder)):  # Parquet files take no such path
        raise ConfigError(f"--output {folder} is no UTF-8: give another name")
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
        raise ConfigError(_made_by(folder, maker(folder)))


def _made_by(folder: Path, command: str | None) -> str:
    what = f"what `segquant {command}` wrote" if command else "files that segquant did not write"
    return f"--output {folder} holds {what}: give a new folder, or --force to write among them"


def maker(folder: Path) -> str | None:
    """The command that made a folder; None where none says so."""
    return _marker(folder).get("command")


class Claim:
    """An output folder that this process holds.

    It knows the files that segquant wrote there, each recorded before it is written, and nothing else is replaced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(folder))
        self._lock = os.stat(folder / _LOCK)
        self.known = _recorded(folder / _WRITTEN)
        self.settle()

    def settle(self) -> None:
        """Write the record anew, of what is there and in order: a killed run before this one leaves no trace in it."""
        self.known = {name for name in self.known if os.path.lexists(self.folder / name)}
        write_text(self.folder / _WRITTEN, "".join(f"{json.dumps(name)}\n" for name in sorted(self.known)))

    def note(self, *paths: Path) -> None:
        """Record files that will be written; a later run may replace them."""
        names = {name for path in paths if (name := self._name(path))} - self.known
        self.known |= names
        with open(self.folder / _WRITTEN, "a") as file:
            file.writelines(f"{json.dumps(name)}\n" for name in sorted(names))

    def check(self, *paths: Path) -> None:
        """Raise ConfigError where one of these is, holds or lies behind a link to what segquant did not write."""
        for path in paths:
            if not path.parent.resolve().is_relative_to(self.folder.resolve()):
                raise ConfigError(f"{path} lies behind a link that leads out of {self.folder}: remove the link")
            entries = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
            for entry in entries:
                name = self._name(entry)
                unknown = entry.exists() and not entry.is_dir() and name not in self.known
                if name and (unknown or entry.is_symlink()):  # segquant writes no links
                    raise ConfigError(
                        f"{entry} would be replaced, and segquant did not write it: move it, or give another --output"
                    )

    def replaces(self, path: Path, part: Path) -> None:
        """Before `part` becomes `path`: record it, and raise as `check`, or ConfigError where the folder is another."""
        if self._name(path) is None:
            return
        if not self.holds():
            raise ConfigError(f"{self.folder} was removed or replaced while this wrote to it: run it again")
        self.check(path)
        files = [entry for entry in part.rglob("*") if not entry.is_dir()] if part.is_dir() else [part]
        self.note(*(path / entry.relative_to(part) for entry in files))

    def holds(self) -> bool:
        """Whether the folder is still the one that was claimed, and not removed or made anew by another process."""
        try:
            return os.path.samestat(os.stat(self.folder / _LOCK), self._lock)
        except OSError:
            return False

    def _name(self, path: Path) -> str | None:
        """The name of a file below the folder; None for one elsewhere, and for a temporary one."""
        path = Path(os.path.abspath(path))
        if not path.is_relative_to(self.folder):
            return None
        name = path.relative_to(self.folder)
        return None if any(part.startswith(TEMPORARY) for part in name.parts) else name.as_posix()


def _recorded(path: Path) -> set[str]:
    """The names in a record of files; a line that was cut off, or that somebody else wrote, names none.

    A name that leads out of the folder is somebody else's.
    """
    names = set()
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        with suppress(ValueError):
            name = PurePosixPath(str(json.loads(line)))
            if not name.is_absolute() and ".." not in name.parts:
                names.add(name.as_posix())
    return names


@contextmanager
def claimed(folder: Path, command: str, force: bool = False) -> Iterator[Claim]:
    """Mark `folder` and hold it for this process. Where the block raises, a folder that was new is gone again.

    Raises ConfigError where another process holds it, and unless `force` where another command has made it meanwhile.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / _LOCK, timeout=0):
            made = maker(folder)
            if made not in (None, command) and not force:
                raise ConfigError(_made_by(folder, made))
            for parent in {left.parent for left in folder.rglob(f"{TEMPORARY}*")}:
                sweep(parent)
            write_json(folder / MARKER, {"command": command, "version": __version__, "process": os.getpid()})
            claim = Claim(folder)
            try:
                with watched(claim.replaces):
                    yield claim
                if claim.holds():
                    claim.settle()
            except BaseException:
                if new and claim.holds() and {path.name for path in folder.iterdir()} <= {MARKER, _LOCK, _WRITTEN}:
                    shutil.rmtree(folder)
                    for parent in new[1:]:
                        with suppress(OSError):  # "new/x/.." is not empty before x is gone
                            parent.rmdir()
                raise
    except Timeout as error:
        process = _marker(folder).get("process", "unknown")
        raise ConfigError(
            f"--output {folder} is in use by process {process}: wait for it, or give another folder"
        ) from error


def check_new(folder: Path, reads: Iterable[str | Path]) -> None:
    """Raise ConfigError for a folder that holds anything, or that lies in what is read."""
    if holds_anything(folder):
        raise ConfigError(f"{folder} exists: give a new folder, or remove that one first")
    check(folder, "", reads)


def holds_anything(folder: Path) -> bool:
    """Whether there is a file of this name, a dangling link, a folder that is not empty, or the current one."""
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not os.listdir(folder))):
        return True
    return folder.resolve() == Path.cwd()  # who is in it would be left nowhere


def _contain(first: Path, second: Path) -> bool:
    """Whether two paths are the same, or one is a folder around the other, under whatever name."""
    try:
        first, second = first.resolve(), second.resolve()
        same = first == second or first in second.parents or second in first.parents
        return same or _identity(first) in _around(second) or _identity(second) in _around(first)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself
        raise ConfigError(f"--output {first} cannot be followed: {error}") from error


def _identity(path: Path) -> tuple[int, int] | None:
    """What the system knows a file or folder by, also where it is mounted a second time; None where there is none."""
    return ((status := path.stat()).st_dev, status.st_ino) if path.exists() else None


def _around(path: Path) -> set[tuple[int, int] | None]:
    return {_identity(folder) for folder in (path, *path.parents)} - {None}


def _marker(folder: Path) -> dict:
    """What the marker says; nothing where there is none, or a file of somebody else's."""
    try:
        marker = read_json(folder / MARKER)
    except SegquantError:
        return {}
    return marker if isinstance(marker, dict) else {}
