"""Data sets on the hub: what is known of them, and the Parquet files of one split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from segquant.base import classes
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError
from segquant.base.repository import HUB_ID, Repository, open_repository
from segquant.data.layouts import Layout
from segquant.data.tables import Table, open_files, split_files


class Known(NamedTuple):
    """Defaults for a data set on the hub."""

    revision: str | None = None
    configuration: str | None = None
    layout: Layout | None = None


HUB = {"zhoubolei/scene_parse_150": Known("refs/convert/parquet", "scene_parsing", Layout((), classes.ADE20K, True))}


def on_hub(data: Data) -> bool:
    """Whether `data.source` is not a local path."""
    return not Path(data.source).exists()


def known(data: Data) -> Known:
    """What holds for a data set on the hub: the keys of `data`, else the defaults."""
    default = HUB.get(data.source, Known())
    return Known(data.revision or default.revision, data.configuration or default.configuration, default.layout)


def check_revision(data: Data) -> None:
    """Raise ConfigError for a revision of data that are not on the hub."""
    if data.revision:
        raise ConfigError(f"data.revision is of a hub id, and data source '{data.source}' is none: leave it out")


def find(data: Data) -> Path:
    """The local path of the data. Raises DataError for a file that is no archive, ConfigError for a revision."""
    check_revision(data)
    path = Path(data.source)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise DataError(f"data source '{path}' is a file: give a folder, a zip archive or a hub id")
    return path


def repository(data: Data) -> Repository:
    """Look at a data set on the hub, and download nothing. Raises DataError when there is none."""
    if not HUB_ID.fullmatch(data.source):
        raise DataError(
            f"data source '{data.source}' is not there: give 'scenes', a labelled folder, a zip archive or a hub id "
            "(owner/name)"
        )
    return open_repository(data.source, "dataset", known(data).revision)


def commit(data: Data) -> str:
    """The commit of a data set on the hub. Raises DataError when there is none."""
    there = repository(data)
    there.log_commit()
    return there.commit


def open_remote(there: Repository, data: Data, split: str, limit: int | None = None, labels: bool = True) -> Table:
    """Download the Parquet files of one split and open them, without `labels` for their photos alone; with `limit`,
    only as many as hold so many rows.

    Raises DataError when there is no such split, ConfigError when columns or configuration are not clear.
    """
    configuration = known(data).configuration
    prefix = f"{configuration.strip('/')}/" if configuration else ""
    parquet = [name for name in there.files if name.endswith(".parquet")]
    names = [name.removeprefix(prefix) for name in parquet if name.startswith(prefix)]
    if not names:
        where = f"{configuration} at " if configuration else ""
        folders = sorted({name.partition("/")[0] for name in parquet if "/" in name})
        others = f", whose folders are {', '.join(folders)}" if folders else ""
        raise DataError(
            f"data source '{data.source}' has no Parquet files in {where}revision {there.revision}{others}: choose "
            "data.configuration and data.revision (the hub converts most data sets at refs/convert/parquet)"
        )
    chosen = [prefix + name for name in split_files(names, split, data.source)]
    table = open_files(_fetched(there, chosen, limit), data, f"{data.source} ({split})", limit, labels)
    there.log_commit()
    return table


def _fetched(there: Repository, names: Sequence[str], limit: int | None) -> Iterator[Path]:
    """The local paths of files: all fetched at once, or with a limit one by one as they are asked for."""
    for batch in [[name] for name in names] if limit else [names]:
        folder = there.fetch(batch)
        yield from (folder / name for name in batch)
