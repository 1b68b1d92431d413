"""Read labelled images from Parquet files or from a folder that `datasets` saved: one image and label per row."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError, one_line
from segquant.base.files import read_file, read_json, size_of_file
from segquant.base.validate import shown
from segquant.data.images import Pair, Photo
from segquant.data.splits import names_of
from segquant.data.table_rows import Parquet, Rows, Saved, footer_of, holds_images
from segquant.data.tree import LARGEST, Folder

_SAVED = ("dataset_dict.json", "state.json")  # save_to_disk writes them for several splits and for one
# What follows the split in a file's name: -N, -N-of-N, or with a hash, as older push_to_hub wrote it.
_COUNTED = r"(?P<part>\d+)[-_.]of[-_.](?P<parts>\d+)(-[0-9a-f]{16})?"
_PART = rf"[-_.](\d+|{_COUNTED})"


class Table:
    """The pairs of image and label in a table.

    The id of a pair is the name of its image file where the table stores unique names, else the number of its row.
    Without `labels` it has photos alone, and needs no column of annotations.
    Raises DataError for a table without rows, ConfigError when a column is missing or holds no images.
    """

    def __init__(self, rows: Rows, data: Data, name: str, labels: bool = True) -> None:
        self.rows, self.name = rows, name
        if not len(rows):
            raise DataError(f"{name} has no rows: choose a different split or table")
        keys = ("image", "annotation") if labels else ("image",)
        self.columns = [getattr(data.columns, key) for key in keys]
        for key, column in zip(keys, self.columns):
            if column not in rows.schema.names:
                known = ", ".join(rows.schema.names)
                raise ConfigError(f"{name} has no column '{column}': set data.columns.{key} to one of {known}")
            if rows.schema.names.count(column) > 1:
                raise ConfigError(f"{name} has two columns '{column}': rename one of them")
            if not holds_images(kind := rows.schema.field(column).type):
                raise ConfigError(f"{name} has {kind} instead of images in column '{column}': set data.columns.{key}")
        for column in self.columns:
            rows.check(column)
        names = []
        if pa.types.is_struct(rows.schema.field(self.columns[0]).type):
            names = [Path(path or "").stem for path in rows.paths(self.columns[0])]
        unique = len(set(names) - {""}) == len(rows)
        self.ids = names if unique else [f"{index:08d}" for index in range(len(rows))]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        (image, label), where = self._cells(index, self.columns)
        return Pair(self.ids[index], image, label, *where)

    def photo(self, index: int) -> Photo:
        (image,), where = self._cells(index, self.columns[:1])
        return Photo(self.ids[index], image, *where)

    def _cells(self, index: int, columns: Sequence[str]) -> tuple[list[bytes], list[str]]:
        """The images in these columns of a row, and their names in error messages."""
        where = [f"{self.name} row {index} ({self.ids[index]}), column {column}" for column in columns]
        try:
            cells = self.rows.cells(index, columns)
        except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: a path that is no UTF-8
            raise DataError(f"{where[0]} cannot be read ({one_line(error)}): fetch or save it again") from error
        return [self._bytes(cell, place) for cell, place in zip(cells, where)], where

    def _bytes(self, cell: Any, where: str) -> bytes:
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if isinstance(data, str):
            data, path = None, data
        if data:
            return data
        if not path:
            raise DataError(f"{where} is empty: remove the row")
        short = path if len(path) <= 200 else f"{path[:200]}..."
        file = _inside(self.rows.folder, path, f"{where} names {short}")
        try:
            return read_file(file, LARGEST)
        except (OSError, ValueError) as error:  # a name may hold a zero
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{where} names {short}, which cannot be read ({reason}): add the file") from error


def is_table(folder: Path) -> bool:
    """Whether a folder holds Parquet files or a data set that `save_to_disk` wrote."""
    return any((folder / name).is_file() for name in _SAVED) or bool(_parquet(folder))


def _parquet(folder: Path) -> list[str]:
    """The names of the Parquet files below a folder, also below links, as for images."""
    return [name for name in Folder(folder).names() if name.endswith(".parquet")]


def open_table(folder: Path, split: str, data: Data, labels: bool = True) -> Table:
    """Open one split of the table in `folder`; without `labels` its photos alone.

    Raises DataError when the split or a file is missing or broken, ConfigError when the columns or the folder to read
    are not clear.
    """
    saved = any((folder / name).is_file() for name in _SAVED)
    with _readable(folder):
        if saved:
            return Table(_saved(folder, split), data, f"{folder} ({split})", labels)
        files = [folder / name for name in split_files(_parquet(folder), split, str(folder))]
        return Table(Parquet(files), data, f"{folder} ({split})", labels)


def open_files(files: Iterable[Path], data: Data, name: str, limit: int | None = None, labels: bool = True) -> Table:
    """Open the Parquet files of one split, without `labels` their photos alone; of a lazy iterable, no more files than
    it takes for `limit` rows.

    Raises as `open_table`, calling the table by `name`.
    """
    with _readable(name):
        needed, rows = [], 0
        for file in files:
            needed.append(file)
            rows += footer_of(file).num_rows
            if limit and rows >= limit:
                break
        return Table(Parquet(needed), data, name, labels)


def split_files(names: Iterable[str], split: str, where: str) -> list[str]:
    """The Parquet files of a split among `names` (with slashes), in order: SPLIT.parquet, SPLIT-N.parquet,
    SPLIT-N-of-N.parquet, SPLIT-N-of-N-HASH.parquet, or the files in a folder SPLIT; else so of a synonym.

    Raises DataError when there are none or some are missing, ConfigError when they lie in several folders.
    """
    names = sorted(names)
    matches = (_named(names, name) for name in names_of(split))
    chosen, folders = next((match for match in matches if match[0]), ([], []))
    if not chosen:
        if splits := sorted({name for path in names if (name := _split(PurePosixPath(path)))}):
            raise DataError(f"{where} has no split '{split}': choose one of {', '.join(splits)}")
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise DataError(
            f"{where} has no split '{split}' but the Parquet files {shown}: name the split in the name of the file, "
            "as in train-00000-of-00001.parquet, or of its folder"
        )
    if len(folders) > 1:
        raise ConfigError(
            f"{where} has split '{split}' in several folders: choose data.configuration from "
            f"{', '.join(folder for folder in folders if folder != '.')}"
            + (", or move the files that lie in no folder into one" if "." in folders else "")
        )
    _check_parts(chosen, split, where)
    return chosen


def _saved(folder: Path, split: str) -> Saved:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{folder} needs the package `datasets` to be read: pip install 'segquant[pipeline]'"
        ) from error

    try:
        _check_saved(folder)
        saved = datasets.load_from_disk(str(folder))
    except (LookupError, TypeError, AttributeError) as error:  # JSON of another form than it writes
        raise ValueError(f"{_SAVED[0]} or {_SAVED[1]} is damaged, {type(error).__name__}: {error}") from error
    # `datasets` calls a split without a name "train".
    splits = saved if hasattr(saved, "keys") else {str(saved.split or "train"): saved}
    name = next((name for name in names_of(split) if name in splits), None)
    if name is None:
        raise DataError(f"{folder} has no split '{split}': choose one of {', '.join(splits)}")
    return Saved(splits[name], folder)


def _inside(folder: Path, name: str, what: str) -> Path:
    """The path of a name in `folder`. Raises DataError, `what` named it, where that lies outside."""
    path = Path(os.path.normpath(folder / name))  # a link in the folder is its owner's
    if Path(os.path.normpath(folder)) not in path.parents:
        raise DataError(f"{what}, which lies outside of {folder}: put the file into it")
    return path


def _check_saved(folder: Path) -> None:
    """Raise DataError unless the data set that `save_to_disk` wrote names folders and files of its own alone, which
    `datasets` does not check."""
    whole = folder / _SAVED[0]
    splits = read_json(whole)["splits"] if whole.is_file() else []
    for split in splits:
        if split != Path(split).name or ":" in split:  # which fsspec takes for an address
            raise DataError(f"{whole} names the split {shown(split)}, which is no folder beside it: save it again")
    for state in [path for name in ("", *splits) if (path := folder / name / _SAVED[1]).is_file()]:
        for file in read_json(state)["_data_files"]:
            size_of_file(_inside(state.parent, file["filename"], f"{state} names {shown(file['filename'])}"))


def _named(names: Sequence[str], split: str) -> tuple[list[str], list[str]]:
    """The files of exactly this split, and the folders that have such files."""
    named = re.compile(rf"{re.escape(split)}({_PART})?")
    chosen = {name: path.parent for name in names if named.fullmatch((path := PurePosixPath(name)).stem)}
    if not chosen:
        paths = [PurePosixPath(name) for name in names]
        chosen = {str(path): path.parent.parent for path in paths if path.parent.name == split}
    return list(chosen), sorted({str(folder) for folder in chosen.values()})


def _split(path: PurePosixPath) -> str:
    """The split that a Parquet file's name gives, or else that of its folder; empty where neither gives one."""
    name = re.fullmatch(rf"(?P<split>.*?)({_PART})?", path.stem)["split"]
    return path.parent.name if re.fullmatch(r"\d*|part([-_.].*)?|[0-9a-f]{32}(-\d+)?", name) else name


def _check_parts(names: Sequence[str], split: str, where: str) -> None:
    """Raise DataError unless files that count themselves, as in 00000-of-00002, are all there, each one once."""
    matches = [re.search(rf"{_COUNTED}$", PurePosixPath(name).stem) for name in names]
    parts = [(int(match["part"]), int(match["parts"])) for match in matches if match]
    if not parts:
        return
    numbers, total = sorted(part for part, _ in parts), max(parts for _, parts in parts)
    if len(set(parts)) < len(names) or len({parts for _, parts in parts}) > 1:
        raise DataError(
            f"{where} has several versions of split '{split}', such as {names[0]} and {names[-1]}: keep one"
        )
    if numbers not in ([*range(total)], [*range(1, total + 1)]):
        raise DataError(f"{where} has {len(names)} of the {total} files of split '{split}': fetch it again")


@contextmanager
def _readable(where: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{where} cannot be read as a table ({one_line(error)}): fetch or save it again") from error
