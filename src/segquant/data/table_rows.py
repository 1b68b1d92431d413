"""The rows of Parquet files and of a data set that `datasets` saved, behind one interface."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segquant.base.errors import DataError
from segquant.base.files import size_of_file

_BYTES = ("binary", "large_binary", "binary_view", "null")  # null: every cell is empty
_TEXT = ("string", "large_string", "string_view", "null")
_LARGEST = 1 << 30  # bytes


class Rows(Protocol):
    """Rows whose cells hold an image as {"bytes", "path"} (as `datasets` does), as bytes, or as a path."""

    schema: pa.Schema
    folder: Path  # paths are relative to it

    def __len__(self) -> int: ...
    def check(self, column: str) -> None: ...
    def cells(self, index: int, columns: Sequence[str]) -> list[Any]: ...  # of a row
    def paths(self, column: str) -> list[str | None]: ...  # of all rows


class Parquet:
    """The rows of several files in order, with one row group in memory. Columns that a file lacks are left out."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.folder = files, files[0].parent
        footers = [footer_of(path) for path in files]
        first, *others = (footer.schema.to_arrow_schema() for footer in footers)
        self.schema = pa.schema([field for field in first if all(field.name in other.names for other in others)])
        self._schemas = [first, *others]
        groups = [(path, footer, i) for path, footer in zip(files, footers) for i in range(footer.num_row_groups)]
        self._groups = [(path, group) for path, _, group in groups]
        self._repeated = {path: repeated(footer) for path, footer in zip(files, footers)}
        self._ends = list(accumulate(footer.row_group(group).num_rows for _, footer, group in groups))
        self._held: tuple[tuple[int, list[str]], pa.Table] | None = None  # (row group, columns), their cells

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def check(self, column: str) -> None:
        """Raise DataError where the files hold images in different ways, of which only the first's would be read."""
        first, *others = (schema.field(column).type for schema in self._schemas)
        for path, kind in zip(self.files[1:], others):
            if _kind(kind) != _kind(first):
                other = f"but {self.files[0].name} has {first}"
                raise DataError(f"{path} has {kind} in column '{column}', {other}: write all files alike")

    def cells(self, index: int, columns: Sequence[str]) -> list[Any]:
        number = bisect_right(self._ends, index)
        if self._held is None or self._held[0] != (number, list(columns)):
            path, group = self._groups[number]
            with pq.ParquetFile(path, read_dictionary=self._repeated[path]) as file:
                self._held = (number, list(columns)), file.read_row_group(group, columns=list(columns))
        row = index - (self._ends[number - 1] if number else 0)
        return [self._held[1][column][row].as_py() for column in columns]

    def paths(self, column: str) -> list[str | None]:
        paths: list[str | None] = []
        for parquet in self.files:
            with pq.ParquetFile(parquet) as file:
                cells = file.read(columns=[f"{column}.path"])[column]
            paths += pc.struct_field(cells, "path").to_pylist()
        return paths


class Saved:
    """The rows of a `datasets.Dataset`."""

    def __init__(self, dataset: Any, folder: Path) -> None:
        self.dataset, self.folder = dataset.with_format("arrow"), folder
        self.schema = dataset.features.arrow_schema

    def __len__(self) -> int:
        return len(self.dataset)

    def check(self, column: str) -> None:
        """A saved data set has one schema."""

    def cells(self, index: int, columns: Sequence[str]) -> list[Any]:
        row = self.dataset[index]
        return [row[column][0].as_py() for column in columns]

    def paths(self, column: str) -> list[str | None]:
        batches = self.dataset.select_columns([column]).iter(1000)
        return [path for batch in batches for path in pc.struct_field(batch[column], "path").to_pylist()]


def footer_of(file: Path) -> pq.FileMetaData:
    """The metadata of a Parquet file. Raises OSError, also for what is no file, and pa.ArrowException."""
    size_of_file(file)
    return pq.read_metadata(file)


def repeated(footer: pq.FileMetaData) -> list[str]:
    """The columns of text or bytes in which a file may hold a value once for many rows.

    Given to pq.ParquetFile as `read_dictionary`, they stay as small in memory. A column of a gigabyte is none of them:
    its values might not fit into an Arrow dictionary.
    """
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    coded = {chunk.path_in_schema for chunk in chunks if {"RLE_DICTIONARY", "PLAIN_DICTIONARY"} & {*chunk.encodings}}
    kept = {c.path_in_schema for c in chunks if c.physical_type != "BYTE_ARRAY" or c.total_uncompressed_size > _LARGEST}
    return sorted(coded - kept)


def holds_images(kind: pa.DataType) -> bool:
    """Whether cells of a type can hold images: as bytes, as paths, or as structs of both."""
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        return {"bytes", "path"} <= fields.keys() and _is(fields["bytes"], _BYTES) and _is(fields["path"], _TEXT)
    return _is(kind, _BYTES + _TEXT)


def _is(kind: pa.DataType, names: Sequence[str]) -> bool:
    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)


def _kind(kind: pa.DataType) -> tuple[bool, bool]:
    """Whether cells hold images, and whether as structs."""
    return holds_images(kind), pa.types.is_struct(kind)
