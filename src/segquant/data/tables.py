"""Labelled images in Parquet files, or in a folder that `datasets` saved: one image and one label a row."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segquant.config import Data
from segquant.data.images import Pair
from segquant.errors import ConfigError, DataError

_SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk: of several splits, of one


@dataclass(frozen=True)
class Table:
    """Pairs in the rows of a `datasets.Dataset`, whose two columns hold {"bytes", "path"}; `ids` has one a row."""

    dataset: Any
    ids: Sequence[str]
    image: str
    annotation: str
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Pair:
        row, name = self.dataset[index], self.ids[index]
        where = [f"{self.name} row {index} ({name}), column {column}" for column in (self.image, self.annotation)]
        return Pair(name, _bytes(row[self.image], where[0]), _bytes(row[self.annotation], where[1]), *where)


def _bytes(cell: dict[str, Any] | None, where: str) -> bytes:
    if cell and cell["bytes"]:
        return cell["bytes"]
    if cell and cell["path"]:  # save_to_disk may keep the path alone
        with suppress(OSError):
            return Path(cell["path"]).read_bytes()
    raise DataError(f"{where} holds nothing: take the row out")


def is_table(folder: Path, data: Data) -> bool:
    """Whether a folder holds Parquet files or what `save_to_disk` writes."""
    base = folder / (data.configuration or "")
    return any((base / name).is_file() for name in _SAVED) or next(base.rglob("*.parquet"), None) is not None


def open_table(folder: Path, split: str, data: Data) -> Table:
    """One split. Raises DataError when there is no such split, or a file is broken, ConfigError without the columns."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("Parquet data need Hugging Face's datasets: pip install 'segquant[pipeline]'") from error

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong comes as an exception too
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    base = folder / (data.configuration or "")
    try:
        if any((base / name).is_file() for name in _SAVED):
            dataset = _saved(datasets.load_from_disk(str(base)), split, base)
        else:
            files = [str(path) for path in _parquet(base, split)]
            dataset = datasets.load_dataset("parquet", data_files=files, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        cause = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(f"{base} cannot be read as a table of images ({cause}): fetch or save it again") from error
    for key, column in (("image", data.columns.image), ("annotation", data.columns.annotation)):
        if column not in dataset.column_names:
            known = ", ".join(dataset.column_names)
            raise ConfigError(f"{base} has no column '{column}': set data.columns.{key} to one of {known}")
        dataset = dataset.cast_column(column, datasets.Image(decode=False))
    ids = _ids(dataset, data.columns.image)
    return Table(dataset, ids, data.columns.image, data.columns.annotation, f"{base} ({split})")


def _ids(dataset: Any, column: str) -> Sequence[str]:
    """The names of the image files where the rows know them and they differ, else the rows' numbers."""
    import pyarrow.compute as pc

    paths = pc.struct_field(dataset.data[column], "path").to_pylist()
    names = [Path(path or "").stem for path in paths]
    if len(set(names) - {""}) == len(names):
        return names
    return [f"{index:08d}" for index in range(len(dataset))]


def _saved(found: Any, split: str, base: Path) -> Any:
    if not hasattr(found, "keys"):  # a single split, whatever its name
        return found
    if split not in found:
        raise DataError(f"{base} has no split '{split}': choose one of {', '.join(found)}")
    return found[split]


def _parquet(base: Path, split: str) -> list[Path]:
    """The Parquet files of a split: in a folder of its name, or with names that begin with it."""
    files = sorted(base.rglob("*.parquet"))
    named = re.compile(rf"{re.escape(split)}([-_.].*)?")
    found = [p for p in files if split in p.relative_to(base).parts[:-1] or named.fullmatch(p.stem)]
    if not found:
        some = ", ".join(str(path.relative_to(base)) for path in files[:3])
        raise DataError(
            f"{base} has no split '{split}': its Parquet files are {some}{', ...' if len(files) > 3 else ''}; "
            "a file's folder or the beginning of its name says its split"
        )
    return found
