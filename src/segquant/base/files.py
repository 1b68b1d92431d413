"""Files that exist whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segquant.base.errors import SegquantError

log = logging.getLogger(__name__)
TEMPORARY = ".tmp-segquant-"  # .gitignore and .dvcignore name it


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; rename it to `path` when the block ends well.

    Works for a file or, when the block makes a directory of that name, for a directory. On an
    exception the temporary is removed and what stood at `path` before is untouched.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
    except OSError as error:
        raise SegquantError(f"cannot write {path}: {error.strerror}") from error
    part = holder / path.name
    try:
        yield part
        if path.is_dir() and not path.is_symlink():
            path.rename(holder / "old")
            try:
                part.replace(path)
            except OSError:
                (holder / "old").rename(path)
                raise
        else:
            part.replace(path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    with replacing(path) as part, open(part, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode())
    log.debug("wrote %s, %d characters", path, len(text))


def write_json(path: str | Path, value: Any) -> None:
    """Indented JSON with a final newline; NaN is refused, as no JSON reader has to know it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def csv_text(rows: Iterable[Sequence[Any]], header: Sequence[str]) -> str:
    """A header and rows as CSV, with Unix line ends; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise SegquantError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise SegquantError(f"{path} is not readable JSON: {error}") from error


def digest(value: Any) -> str:
    """SHA-256 of a value as JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
