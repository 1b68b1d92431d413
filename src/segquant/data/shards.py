"""Store labelled images as Parquet shards with a manifest, and read them back."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segquant.base.errors import DataError, SegquantError, one_line
from segquant.base.files import read_json, replacing, sha256, write_json
from segquant.base.progress import progress
from segquant.data.images import IGNORE, decode_annotation

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("annotation", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
SHARD_BYTES = 4_000_000


def write_shards(sources: dict[str, Any], folder: str | Path, shard_bytes: int = SHARD_BYTES) -> dict[str, Any]:
    """Write `{split: source}` as `SPLIT-NNNNN-of-NNNNN.parquet` files and `manifest.json`; return the manifest.

    Images keep their original bytes. One shard at a time is in memory. The folder exists whole or not at all. Raises
    DataError when the source is broken, SegquantError when the folder cannot be written.
    """
    try:
        with replacing(folder) as part:
            part.mkdir()
            splits = {split: _write_split(source, split, part, shard_bytes) for split, source in sources.items()}
            first = next(iter(sources.values()))
            manifest = make_manifest(first.classes, splits)
            write_json(part / "manifest.json", manifest)
    except OSError as error:  # sources raise DataError for files that they cannot read
        raise SegquantError(f"cannot write {folder}: {error.strerror or error}") from error
    return manifest


def make_manifest(classes: Sequence[str], splits: dict[str, Any]) -> dict[str, Any]:
    """Build the manifest; its fingerprint covers classes, ids, images and labels, but not the division into shards."""
    manifest = {"classes": list(classes), "ignore": IGNORE, "splits": splits}
    content = {**manifest, "splits": {name: split["content"] for name, split in splits.items()}}
    return {**manifest, "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest()}


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Raises SegquantError when the folder has no readable manifest."""
    return read_json(Path(folder) / "manifest.json")


@dataclass(frozen=True)
class Shard:
    """A Parquet file as the manifest describes it."""

    path: Path
    rows: int
    sha256: str


def open_shards(folder: str | Path, split: str) -> list[Shard]:
    """The shards of a split in order. Raises DataError when the split or a file is missing."""
    splits = read_manifest(folder)["splits"]
    if split not in splits:
        raise DataError(f"{folder} has no split '{split}': choose one of {', '.join(splits)}")
    shards = [Shard(Path(folder) / entry["file"], entry["rows"], entry["sha256"]) for entry in splits[split]["shards"]]
    for shard in shards:
        if not shard.path.is_file():
            raise DataError(f"shard {shard.path} is missing: run prepare_shards again")
    return shards


def shard_rows(shard: Shard) -> Iterator[dict]:
    """Yield the rows of a shard in order, with one row group in memory at a time.

    Raises DataError when the file is not the one that the manifest describes.
    """
    try:
        if sha256(shard.path) != shard.sha256:
            raise DataError(f"shard {shard.path} is not the file that its manifest names: run prepare_shards again")
        with pq.ParquetFile(shard.path) as file:
            if file.metadata.num_rows != shard.rows or not shard.rows:
                raise DataError(
                    f"shard {shard.path} has {file.metadata.num_rows} rows but its manifest says {shard.rows}: "
                    "run prepare_shards again"
                )
            for group in range(file.num_row_groups):
                yield from file.read_row_group(group).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"shard {shard.path} cannot be read ({one_line(error)}): run prepare_shards again") from error


def read_rows(folder: str | Path, split: str, limit: int | None = None) -> Iterator[dict]:
    """Yield the first `limit` rows of a split in order; None for all."""
    return islice(chain.from_iterable(map(shard_rows, open_shards(folder, split))), limit)


class ShardRows(Sequence):
    """The rows of a split by index. A shard is read when one of its rows is asked for, and kept."""

    def __init__(self, folder: str | Path, split: str) -> None:
        self._shards = open_shards(folder, split)
        self._ends = list(accumulate(shard.rows for shard in self._shards))
        self._read = cache(lambda number: list(shard_rows(self._shards[number])))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self._read(number)[index - self._ends[number]]  # counted from the shard's end


def _write_split(source: Any, split: str, folder: Path, shard_bytes: int) -> dict[str, Any]:
    counts = LabelCounts()
    parts: list[tuple[Path, int]] = []
    rows: list[dict] = []
    size = 0

    def flush() -> None:
        nonlocal rows, size
        if rows:
            path = folder / f"{split}-part-{len(parts):05d}.parquet"
            # JPEG and PNG bytes do not compress further.
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, compression="none", row_group_size=64)
            parts.append((path, len(rows)))
        rows, size = [], 0

    with progress(total=len(source), desc=f"shards {split}", unit="image") as bar:
        for i in range(len(source)):
            row = source[i]
            counts.add(row)
            rows.append(row)
            size += len(row["image"]) + len(row["annotation"])
            if size >= shard_bytes:
                flush()
            bar.update()
    flush()
    shards = []
    for i, (path, count) in enumerate(parts):
        final = path.with_name(f"{split}-{i:05d}-of-{len(parts):05d}.parquet")
        path.rename(final)
        shards.append({"file": final.name, "rows": count, "bytes": final.stat().st_size, "sha256": sha256(final)})
    return {**counts.summary(), "shards": shards}


class LabelCounts:
    """What the manifest says of a split: images, pixels per class, and a digest of ids, images and labels."""

    def __init__(self) -> None:
        self.images, self.pixels, self.content = 0, np.zeros(256, np.int64), hashlib.sha256()

    def add(self, row: dict) -> None:
        self.images += 1
        for part in (row["id"].encode(), row["image"], row["annotation"]):
            self.content.update(hashlib.sha256(part).digest())
        self.pixels += np.bincount(decode_annotation(row["annotation"]).ravel(), minlength=256)

    def summary(self) -> dict[str, Any]:
        present = {str(c): int(self.pixels[c]) for c in np.nonzero(self.pixels)[0] if c != IGNORE}
        return {
            "images": self.images,
            "content": self.content.hexdigest(),
            "class_pixels": present,
            "ignored_pixels": int(self.pixels[IGNORE]),
        }
