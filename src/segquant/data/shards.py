"""Store labelled images as Parquet shards with a manifest, and read them back."""

from __future__ import annotations

import hashlib
import json
import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain, islice
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segquant.base.errors import DataError, SegquantError, one_line, system_reason
from segquant.base.files import read_json, replacing, sha256, write_json
from segquant.base.progress import progress
from segquant.base.text import is_utf8
from segquant.data.images import IGNORE, decode_annotation, histogram
from segquant.data.rows import OnError, rows
from segquant.data.table_rows import footer_of, repeated

log = logging.getLogger(__name__)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("annotation", pa.binary()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
_KINDS = {"image": bytes, "annotation": bytes, "width": int, "height": int}
SHARD_BYTES = 4_000_000


def write_shards(
    sources: dict[str, Any],
    folder: str | Path,
    shard_bytes: int = SHARD_BYTES,
    on_error: OnError = "stop",
    learned: Set[bytes] = frozenset(),
) -> dict[str, Any]:
    """Write `{split: source}` as `SPLIT-NNNNN-of-NNNNN.parquet` files and `manifest.json`; return the manifest.

    Images keep their original bytes. One shard at a time is in memory. The folder exists whole or not at all. With
    `on_error` "skip" broken rows are left out, and the manifest lists them with the shard that they would be in. Warns
    of images that are in an earlier split too, or whose digest is in `learned` (those that methods calibrate or train
    on). Raises DataError when the source is broken, SegquantError when the folder cannot be written.
    """
    try:
        with replacing(folder) as part:
            part.mkdir()
            splits, learned = {}, set(learned)
            for split, source in sources.items():
                counts, shards = _write_split(source, split, part, shard_bytes, on_error)
                splits[split] = {**counts.summary(), "shards": shards}
                if common := counts.digests.keys() & learned:
                    log.warning(
                        "%d of the %d images of split '%s', such as %s, are also among those that methods calibrate or "
                        "train on: their scores may be too good",
                        len(common),
                        counts.images,
                        split,
                        min(counts.digests[digest] for digest in common),
                    )
                learned |= counts.digests.keys()
            first = next(iter(sources.values()))
            manifest = make_manifest(first.classes, splits)
            write_json(part / "manifest.json", manifest)
    except OSError as error:  # sources raise DataError for files that they cannot read
        raise SegquantError(f"cannot write {folder}: {system_reason(error)}") from error
    return manifest


def make_manifest(classes: Sequence[str], splits: dict[str, Any]) -> dict[str, Any]:
    """Build the manifest; its fingerprint covers classes, ids, images and labels, but not the division into shards."""
    manifest = {"classes": list(classes), "ignore": IGNORE, "splits": splits}
    content = {**manifest, "splits": {name: split["content"] for name, split in splits.items()}}
    return {**manifest, "fingerprint": hashlib.sha256(json.dumps(content).encode()).hexdigest()}


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Raises SegquantError when the folder has no manifest of the form that `write_shards` gives it."""
    path = Path(folder) / "manifest.json"
    manifest = read_json(path)
    kinds = {"classes": list, "splits": dict, "fingerprint": str}
    fits = isinstance(manifest, dict) and all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())
    fits = fits and _texts(manifest["classes"]) and 0 < len(manifest["classes"]) <= IGNORE
    if not fits or not all(map(_is_split, manifest["splits"].values())):
        raise DataError(f"{path} is not as prepare_shards writes it: run prepare_shards again")
    return manifest


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _is_split(split: Any) -> bool:
    kinds = {"images": int, "content": str, "class_pixels": dict, "shards": list}
    fits = isinstance(split, dict) and all(isinstance(split.get(key), kind) for key, kind in kinds.items())
    return fits and all(map(_is_shard, split["shards"]))


def _is_shard(entry: Any) -> bool:
    kinds = {"file": str, "rows": int, "sha256": str}
    fits = isinstance(entry, dict) and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
    return fits and _texts(entry.get("skipped", [])) and entry["file"] == PurePath(entry["file"]).name != ""


@dataclass(frozen=True)
class Shard:
    """A Parquet file as the manifest describes it; `skipped` holds the errors of broken rows that it lacks."""

    path: Path
    rows: int
    sha256: str
    skipped: tuple[str, ...] = ()


def open_shards(folder: str | Path, split: str) -> list[Shard]:
    """The shards of a split in order. Raises DataError when the split or a file is missing."""
    splits = read_manifest(folder)["splits"]
    if split not in splits:
        raise DataError(f"{folder} has no split '{split}': choose one of {', '.join(splits)}")
    shards = [
        Shard(Path(folder) / entry["file"], entry["rows"], entry["sha256"], tuple(entry.get("skipped", ())))
        for entry in splits[split]["shards"]
    ]
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
        footer = footer_of(shard.path)
        with pq.ParquetFile(shard.path, metadata=footer, read_dictionary=repeated(footer)) as file:
            if footer.num_rows != shard.rows or not shard.rows:
                raise DataError(
                    f"shard {shard.path} has {footer.num_rows} rows but its manifest says {shard.rows}: "
                    "run prepare_shards again"
                )
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                for i in range(len(table)):
                    row = {name: cells[i].as_py() for name, cells in zip(table.column_names, table.columns)}
                    check_id(row.get("id"), f"shard {shard.path}")
                    for key, kind in _KINDS.items():
                        if not isinstance(row.get(key), kind):
                            raise DataError(f"shard {shard.path} has no {key} of {row['id']}: run prepare_shards again")
                    yield row
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: an id that is no UTF-8
        raise DataError(f"shard {shard.path} cannot be read ({one_line(error)}): run prepare_shards again") from error


def check_id(name: Any, where: str) -> None:
    """Raise DataError for an id that would lead a picture of that name out of its folder."""
    if isinstance(name, str) and not is_utf8(name):
        raise DataError(f"{where} has the file {name!r}, whose name is no UTF-8: rename it")
    path = PurePath(name) if isinstance(name, str) else PurePath()
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise DataError(f"{where} has the id {str(name)[:80]!r}, which is no name: prepare shards of your own again")


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


def _write_split(
    source: Any, split: str, folder: Path, shard_bytes: int, on_error: OnError
) -> tuple[LabelCounts, list[dict[str, Any]]]:
    """What the split holds, and its shards as the manifest lists them."""
    counts = LabelCounts()
    parts: list[tuple[Path, int, int]] = []  # rows of the shard, rows skipped so far
    held: list[dict] = []
    skipped: list[str] = []
    size = shown = 0

    name = split.replace("/", "-")  # of a layout in which splits lie in splits

    def flush() -> None:
        nonlocal held, size
        path = folder / f"{name}-part-{len(parts):05d}.parquet"
        # JPEG and PNG bytes do not compress further.
        pq.write_table(pa.Table.from_pylist(held, SCHEMA), path, compression="none", row_group_size=64)
        parts.append((path, len(held), len(skipped)))
        held, size = [], 0

    with progress(total=len(source), desc=f"shards {split}", unit="image") as bar:
        for row in rows(source, skipped if on_error == "skip" else None):
            check_id(row["id"], f"split '{split}'")
            counts.add(row)
            held.append(row)
            size += len(row["image"]) + len(row["annotation"])
            if size >= shard_bytes:
                flush()
            bar.update(counts.images + len(skipped) - shown)
            shown = counts.images + len(skipped)
        if len(source) > shown:
            bar.update(len(source) - shown)
    if held:
        flush()
    if not parts:
        raise DataError(f"no image of split '{split}' can be read: {skipped[0] if skipped else 'it is empty'}")
    if skipped:
        log.warning("%d of the %d images of split '%s' were skipped", len(skipped), len(source), split)
    shards = []
    for i, (path, count, _) in enumerate(parts):
        begin = parts[i - 1][2] if i else 0
        errors = skipped[begin : parts[i][2] if i + 1 < len(parts) else None]
        final = path.with_name(f"{name}-{i:05d}-of-{len(parts):05d}.parquet")
        path.rename(final)
        entry = {"file": final.name, "rows": count, "bytes": final.stat().st_size, "sha256": sha256(final)}
        shards.append({**entry, "skipped": errors} if errors else entry)
    return counts, shards


class LabelCounts:
    """What the manifest says of a split: images, pixels per class, and a digest of ids, images and labels.

    `digests` maps the SHA-256 of each image to its id.
    """

    def __init__(self) -> None:
        self.images, self.pixels, self.content = 0, np.zeros(256, np.int64), hashlib.sha256()
        self.digests: dict[bytes, str] = {}

    def add(self, row: dict) -> None:
        self.images += 1
        name, image, label = (
            hashlib.sha256(part).digest() for part in (row["id"].encode(), row["image"], row["annotation"])
        )
        self.content.update(name + image + label)
        self.digests[image] = row["id"]
        self.pixels += histogram(decode_annotation(row["annotation"]))

    def summary(self) -> dict[str, Any]:
        present = {str(c): int(self.pixels[c]) for c in np.nonzero(self.pixels)[0] if c != IGNORE}
        return {
            "images": self.images,
            "content": self.content.hexdigest(),
            "class_pixels": present,
            "ignored_pixels": int(self.pixels[IGNORE]),
        }
