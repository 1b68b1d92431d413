"""Detect changes in a data source without reading its images."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from segquant.base import files
from segquant.base.config import Data
from segquant.data.remote import commit, find, on_hub
from segquant.data.tree import Folder


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:  # a link to nothing
        return path.lstat()


def fingerprint(data: Data) -> dict[str, Any]:
    """Describe the state of a data source in JSON values.

    For a folder or an archive: the number of files and bytes, and a digest of their names, sizes and modification
    times. For the hub: the commit. If `data.classes` is a file, its digest too. Raises DataError when the data do not
    exist.
    """
    state: dict[str, Any] = {"source": data.source}
    if data.classes and Path(data.classes).is_file():
        state["classes"] = files.sha256(data.classes)
    if data.source == "scenes":
        return state
    if on_hub(data):
        return {**state, "commit": commit(data)}
    path = find(data)
    names = Folder(path).names() if path.is_dir() else [""]
    stats = [(name, _stat(path / name)) for name in names]
    listing = "".join(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n" for name, stat in stats)
    size = sum(stat.st_size for _, stat in stats)
    digest = hashlib.sha256(listing.encode(errors="surrogateescape"))  # a name may be no UTF-8
    return {**state, "files": len(stats), "bytes": size, "listing": digest.hexdigest()}
