"""Sources of labelled images: the built-in scenes, a folder, a zip archive, Parquet files, or the hub.

A source has a length, `source[i]` is a shard row (`id`, `image` and `annotation` as encoded bytes, `width`, `height`),
and `source.classes` names its class ids. Whatever the layout stores, an annotation is a PNG of uint8 class ids of the
same size as the image, with 255 for ignored pixels.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from segquant import scenes
from segquant.base import classes
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError
from segquant.data.labels import NoClasses, labels_of, listed
from segquant.data.layouts import IMAGES, KNOWN, Layout, complete, matching, recognise
from segquant.data.remote import find, known, on_hub, open_remote, repository
from segquant.data.rows import Files, Labelled, OnError, Pairs, Photos, Readable
from segquant.data.rows import rows as rows  # beside what it takes
from segquant.data.tables import is_table, open_table
from segquant.data.tree import open_tree

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scenes:
    """The built-in procedural scenes."""

    split: str
    size: int
    seed: int = 0
    classes: Sequence[str] = classes.ADE20K

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return scenes.sample(self.seed, self.split, index)


class _NoLayout(DataError):
    pass


def open_source(
    data: str | Data, split: str, limit: int | None = None, on_error: OnError = "stop"
) -> Scenes | Labelled:
    """Open at most `limit` images of one split of `data`; a string is short for Data(source).

    Raises DataError when the data, the split or (unless `on_error` is "skip") a label is missing, ConfigError when the
    classes or the meaning of the label values are not clear.
    """
    data = Data(data) if isinstance(data, str) else data
    if data.source == "scenes":
        if split not in scenes.SIZES:
            raise DataError(f"scenes has no split '{split}': choose one of {', '.join(scenes.SIZES)}")
        return Scenes(split, min(scenes.SIZES[split], limit or scenes.SIZES[split]))
    if on_hub(data):
        _check_names(data)
        there, layout = repository(data), known(data).layout
        labels = labels_of(data, layout)  # what it refuses is not downloaded
        pairs = open_remote(there, data, split, limit)
    else:
        pairs, layout = _local(find(data), split, data, on_error)
        labels = labels_of(data, layout)
    size = min(len(pairs), limit or len(pairs))
    name = f"{data.source}, split {split}"
    log.info("%s: %d images, %d classes (%s)", name, size, len(labels.classes), listed(labels.classes))
    return Labelled(pairs, size, labels, name, data.max_pixels)


def open_images(
    data: Data, split: str, limit: int | None = None, on_error: OnError = "stop"
) -> Scenes | Labelled | Photos | Readable:
    """Open a split whose labels are not needed: as `open_source`, else its photographs, or those in folder `split` or
    in `data`. With `on_error` "skip", the next readable row takes the place of a broken one.

    Raises DataError when there are none.
    """
    try:
        source = open_source(data, split, limit, on_error)
    except NoClasses:
        if on_hub(data):
            raise
        pairs, _ = _local(find(data), split, data, "skip")
        if not isinstance(pairs, Files):
            raise
        images = [(name, image) for name, image, _ in pairs.layout.pairs]
        source = Photos(pairs.tree, images[:limit], data.max_pixels)
    except _NoLayout as error:
        tree = open_tree(Path(data.source))
        names = tree.names(split) or [name for name in tree.names() if "/" not in name]
        photos = [(name, name) for name in names if PurePosixPath(name).suffix.lower() in IMAGES]
        if not photos:
            raise DataError(f"neither {tree.where(split)} nor {data.source} holds photographs, and {error}") from error
        source = Photos(tree, photos[:limit], data.max_pixels)
    return source if on_error == "stop" or isinstance(source, Scenes) else Readable(source)


def image_digests(source: Scenes | Labelled | Photos | Readable) -> Iterator[bytes]:
    """The SHA-256 of each image that can be read, without decoding any."""
    source = source.source if isinstance(source, Readable) else source
    if isinstance(source, Scenes):  # slow to draw; two splits have all images in common, or none
        yield hashlib.sha256(source[0]["image"]).digest()
        return
    for index in range(len(source)):
        try:
            yield hashlib.sha256(source.image(index)).digest()
        except DataError:  # reported where it is decoded
            continue


def _local(path: Path, split: str, data: Data, on_error: OnError) -> tuple[Pairs, Layout | None]:
    """The pairs in a folder or an archive: by the patterns of data.images, else by a known layout, else by a table."""
    if data.configuration:  # only tables have configurations
        if not (path / data.configuration).is_dir():
            raise ConfigError(f"{path} has no folder '{data.configuration}': check data.configuration")
        return _table(path / data.configuration, split, data), None
    tree = open_tree(path)
    match = (tree, matching(tree, split, data.images, data.annotations)) if data.images else recognise(tree, split)
    if match:
        tree, layout = match
        layout = complete(tree, layout, split, data.names, skip=on_error == "skip")
        return Files(tree, layout), layout
    if path.is_dir() and is_table(path):
        return _table(path, split, data), None
    raise _NoLayout(
        f"{path} has no split '{split}' in a known layout, {KNOWN}: for any other layout set data.images "
        "and data.annotations"
    )


def _table(folder: Path, split: str, data: Data) -> Pairs:
    _check_names(data)
    return open_table(folder, split, data)


def _check_names(data: Data) -> None:
    if data.names:
        raise ConfigError(f"{data.source} is a table, which data.names cannot choose from: set data.names to null")
