"""Labelled images in Parquet files, or in a folder that `datasets` saved: one image and one label a row."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import Pair

_SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk: of several splits, of one
_PARTS = re.compile(r"-of-(\d+)$")


class Rows(Protocol):
    """Rows of two columns; a cell is {"bytes", "path"}, as `datasets` stores an image, or bytes, or a path."""

    schema: pa.Schema
    folder: Path  # what paths are relative to

    def __len__(self) -> int: ...
    def cells(self, index: int, columns: Sequence[str]) -> list[Any]: ...
    def paths(self, column: str) -> list[str | None]: ...


class Parquet:
    """Rows of some files in turn, a row group in memory at a time; its columns are those that all files have."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.folder = files, files[0].parent
        footers = [pq.read_metadata(path) for path in files]
        first, *others = (footer.schema.to_arrow_schema() for footer in footers)
        self.schema = pa.schema([field for field in first if all(field.name in other.names for other in others)])
        self._groups = [(p, group) for p, footer in zip(files, footers) for group in range(footer.num_row_groups)]
        counts = [footer.row_group(group).num_rows for footer in footers for group in range(footer.num_row_groups)]
        self._ends = list(accumulate(counts))
        self._held: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def cells(self, index: int, columns: Sequence[str]) -> list[Any]:
        number = bisect_right(self._ends, index)
        if self._held is None or self._held[0] != number:
            path, group = self._groups[number]
            with pq.ParquetFile(path) as file:
                self._held = number, file.read_row_group(group, columns=list(columns))
        row = index - (self._ends[number - 1] if number else 0)
        return [self._held[1][column][row].as_py() for column in columns]

    def paths(self, column: str) -> list[str | None]:
        found: list[str | None] = []
        for path in self.files:
            with pq.ParquetFile(path) as file:
                cells = file.read(columns=[f"{column}.path"])[column]
            found += pc.struct_field(cells, "path").to_pylist()
        return found


class Saved:
    """Rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, folder: Path) -> None:
        self.dataset, self.folder = dataset.with_format("arrow"), folder
        self.schema = dataset.features.arrow_schema

    def __len__(self) -> int:
        return len(self.dataset)

    def cells(self, index: int, columns: Sequence[str]) -> list[Any]:
        row = self.dataset[index]
        return [row[column][0].as_py() for column in columns]

    def paths(self, column: str) -> list[str | None]:
        found = self.dataset.select_columns([column])
        batches = found.iter(1000)
        return [path for batch in batches for path in pc.struct_field(batch[column], "path").to_pylist()]


class Table:
    """Pairs in the rows of a table, by id: the image files' names where the rows know them and they differ, else the
    rows' numbers."""

    def __init__(self, rows: Rows, data: Data, name: str) -> None:
        self.rows, self.name = rows, name
        if not len(rows):
            raise DataError(f"{name} has no rows")
        self.columns = data.columns.image, data.columns.annotation
        for key, column in zip(("image", "annotation"), self.columns):
            if column not in rows.schema.names:
                known = ", ".join(rows.schema.names)
                raise ConfigError(f"{name} has no column '{column}': set data.columns.{key} to one of {known}")
            if not _holds_images(kind := rows.schema.field(column).type):
                raise ConfigError(f"{name} has {kind} in column '{column}', no images: set data.columns.{key}")
        names = []
        if pa.types.is_struct(rows.schema.field(self.columns[0]).type):
            names = [Path(path or "").stem for path in rows.paths(self.columns[0])]
        unique = len(set(names) - {""}) == len(rows)
        self.ids = names if unique else [f"{index:08d}" for index in range(len(rows))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        name = self.ids[index]
        where = [f"{self.name} row {index} ({name}), column {column}" for column in self.columns]
        try:
            cells = self.rows.cells(index, self.columns)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{where[0]} cannot be read ({_line(error)}): fetch or save it again") from error
        return Pair(name, *(self._bytes(cell, place) for cell, place in zip(cells, where)), *where)

    def _bytes(self, cell: Any, where: str) -> bytes:
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if isinstance(data, str):
            data, path = None, data
        if data:
            return data
        if not path:
            raise DataError(f"{where} holds nothing: take the row out")
        try:
            return (self.rows.folder / path).read_bytes()
        except OSError as error:
            raise DataError(f"{where} names {path}, which cannot be read: {error.strerror}") from error


def is_table(folder: Path) -> bool:
    """Whether a folder holds Parquet files or what `save_to_disk` writes."""
    return any((folder / name).is_file() for name in _SAVED) or next(folder.rglob("*.parquet"), None) is not None


def open_table(folder: Path, split: str, data: Data) -> Table:
    """One split of the data in `folder`.

    Raises DataError when there is no such split, or a file is broken or missing, ConfigError when it is not said
    which columns or folder to take.
    """
    try:
        saved = any((folder / name).is_file() for name in _SAVED)
        found = _saved(folder, split) if saved else Parquet(_parquet(folder, split))
        return Table(found, data, f"{folder} ({split})")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder} cannot be read as a table ({_line(error)}): fetch or save it again") from error


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {field.name for field in kind}
    checks = pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string
    return any(check(kind) for check in checks)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _saved(folder: Path, split: str) -> Saved:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("what `datasets` saved needs it to be read: pip install 'segquant[pipeline]'") from error

    found = datasets.load_from_disk(str(folder))
    # A single split: what has no name is "train", as everywhere in `datasets`
    splits = found if hasattr(found, "keys") else {str(found.split or "train"): found}
    if split not in splits:
        raise DataError(f"{folder} has no split '{split}': choose one of {', '.join(splits)}")
    return Saved(splits[split], folder)


def _parquet(folder: Path, split: str) -> list[Path]:
    """The Parquet files of a split: SPLIT.parquet or SPLIT-NNNNN-of-NNNNN.parquet, or those in a folder SPLIT."""
    files = sorted(folder.rglob("*.parquet"))
    named = re.compile(rf"{re.escape(split)}([-_.]\d+([-_.]of[-_.]\d+)?)?")
    found = [path for path in files if named.fullmatch(path.stem)]
    holders = {path.parent for path in found}
    if not found:
        found = [path for path in files if path.parent.name == split and path.parent != folder]
        holders = {path.parent.parent for path in found}
    if not found:
        some = ", ".join(str(path.relative_to(folder)) for path in files[:3])
        raise DataError(
            f"{folder} has no split '{split}': its Parquet files are {some}{', ...' if len(files) > 3 else ''}; "
            "a file's folder or its name, as train-00000-of-00001.parquet, says its split"
        )
    if len(holders) > 1:
        names = ", ".join(sorted(str(holder.relative_to(folder)) for holder in holders))
        raise ConfigError(f"{folder} has split '{split}' in several folders: choose data.configuration from {names}")
    parts = {int(part[1]) for path in found if (part := _PARTS.search(path.stem))}
    if parts and parts != {len(found)}:
        raise DataError(f"{folder} has {len(found)} of the {max(parts)} files of split '{split}': fetch it again")
    return found
