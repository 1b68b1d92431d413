"""Write files and folders whole or not at all; read and write JSON."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from segquant.base.errors import SegquantError, one_line, system_reason
from segquant.base.temporary import ASIDE, temporary
from segquant.base.text import from_csv, in_csv

log = logging.getLogger(__name__)
_LONGEST = 1 << 26  # bytes of a JSON file: its values take several times as much memory
_POINTER = b"version https://git-lfs"

_watchers: list[Callable[[Path, Path], None]] = []


@contextmanager
def watched(watcher: Callable[[Path, Path], None]) -> Iterator[None]:
    """Call `watcher` (path, what will be renamed to it) before each of `replacing`'s renames, until the block ends."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


@contextmanager
def replacing(path: str | Path, fresh: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds.

    The block writes a file or makes a directory there. A file is on disk (fsync) before it appears. If the block
    raises, the temporary file or directory is removed and `path` stays as it was; an OSError names it. Raises
    SegquantError when the directory of `path` cannot be written, for a file in place of a folder, and with `fresh`
    where `path` holds anything by then.
    """
    path = Path(path)
    new, done, stack = [parent for parent in path.parents if not parent.exists()], False, ExitStack()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = stack.enter_context(temporary(path.parent))
    except OSError as error:
        raise SegquantError(f"cannot write {path}: {system_reason(error)}") from error
    part = holder / path.name
    try:
        yield part
        for watcher in _watchers:
            watcher(path, part)
        if path.is_dir() and not part.is_dir():
            raise SegquantError(f"{path} is a folder: give a file")
        if fresh and os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise SegquantError(f"{path} was written by another process meanwhile: give a new folder")
        if part.is_file():
            with open(part, "r+b") as file:
                os.fsync(file.fileno())
        if path.is_dir() and not path.is_symlink() and not fresh:
            path.rename(holder / ASIDE)  # which `temporary` puts back, however this ends
        part.replace(path)  # a folder that holds anything is not replaced
        done = True
    except OSError as error:
        error.filename = error.filename or str(path)  # as of a full disk
        raise
    except Exception as error:
        if code := re.search(r"\(os error (\d+)\)", str(error)):  # as Rust, in safetensors, words it
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise
    finally:
        stack.close()
        for parent in () if done else new:
            with suppress(OSError):
                parent.rmdir()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write the file `path`, by `replacing`."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """As UTF-8; half of a character, as a name in JSON may hold, becomes an escape."""
    write_bytes(path, text.encode(errors="backslashreplace"))
    log.debug("wrote %s, %d characters", path, len(text))


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON with a final newline. Raises ValueError for NaN, which is not part of JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def csv_text(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """A header and rows as CSV, with Unix line ends and cells by `in_csv`; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *(map(in_csv, row) for row in rows)])
    return text.getvalue()


def csv_rows(text: str) -> Iterator[dict[str, str]]:
    """The rows of `csv_text` as {heading: the cell as it was given}; a cell that a row lacks is empty."""
    for row in csv.DictReader(io.StringIO(text, newline=""), restval=""):
        yield {heading: from_csv(cell) for heading, cell in row.items() if heading is not None}


def read_json(path: str | Path) -> Any:
    """Raises SegquantError when the file is missing or not JSON, or larger than 64 MB."""
    try:
        data = read_file(path, _LONGEST)
        if data.startswith(_POINTER):
            raise SegquantError(f"{path} is a Git LFS pointer: run git lfs pull")
        return parse_json(data.decode())
    except FileNotFoundError as error:
        raise SegquantError(f"{path} does not exist") from error
    except OSError as error:
        raise SegquantError(f"{path} is not readable JSON: {system_reason(error)}") from error
    except ValueError as error:
        raise SegquantError(f"{path} is not readable JSON: {one_line(error)}") from error


def parse_json(text: str) -> Any:
    """Raises ValueError, also for values that are nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its values are nested too deeply") from error


def read_file(path: str | Path, most: int) -> bytes:
    """The bytes of a file of at most `most`. Raises OSError as `size_of_file`, and for one that is larger or grows."""
    if (size := size_of_file(path)) > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes, more than the {most} of any such file", str(path))
    with open(path, "rb") as file:
        data = file.read(size + 1)
    if len(data) > size:
        raise OSError(errno.EFBIG, "it grows while it is read", str(path))
    return data


def size_of_file(path: str | Path) -> int:
    """The bytes of a file, also behind a link. Raises OSError, also for what is no file: to open a named pipe may wait
    without end, and a device may have none."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return status.st_size


def is_lfs_pointer(path: Path) -> bool:
    """Whether a file is what git leaves in the place of one that only Git LFS has."""
    size_of_file(path)
    with open(path, "rb") as file:
        return file.read(64).startswith(_POINTER)


def digest(value: Any) -> str:
    """SHA-256 (hexadecimal) of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """SHA-256 (hexadecimal) of a file. Raises OSError, also for what is no file."""
    size_of_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
