"""What tells one state of a data source from another, without reading its images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from segquant.base import files
from segquant.base.config import Data
from segquant.data.sources import find, on_hub
from segquant.data.tree import Folder


def fingerprint(data: Data) -> dict[str, Any]:
    """Of a folder or an archive: how many files and bytes, and a digest of their names, sizes and times; of the hub,
    the commit. Where `data.classes` is a file, its digest too.

    Raises DataError when there is no such data.
    """
    found: dict[str, Any] = {"source": data.source}
    if data.classes and Path(data.classes).is_file():
        found["classes"] = files.sha256(data.classes)
    if data.source == "scenes":
        return found
    path = find(data)
    if on_hub(data):  # where the folder of a snapshot is named after its commit
        return {**found, "commit": path.name}
    names = Folder(path).names() if path.is_dir() else [""]
    states = [(name, (path / name).stat()) for name in names]
    listing = "".join(f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n" for name, state in states)
    size = sum(state.st_size for _, state in states)
    return {**found, "files": len(states), "bytes": size, "listing": hashlib.sha256(listing.encode()).hexdigest()}
