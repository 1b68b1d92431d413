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
from segquant.data.layouts import IMAGES, KNOWN, Layout, NoLayout, complete, matching, recognise
from segquant.data.remote import check_revision, find, known, on_hub, open_remote, repository
from segquant.data.rows import Files, Labelled, OnError, Pairs, Photos, Readable
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


def open_source(
    data: str | Data, split: str, limit: int | None = None, on_error: OnError = "stop"
) -> Scenes | Labelled:
    """Open at most `limit` images of one split of `data`; a string is short for Data(source).

    Raises DataError when the data, the split or (unless `on_error` is "skip") a label is missing, ConfigError when the
    classes or the meaning of the label values are not clear.
    """
    data = Data(data) if isinstance(data, str) else data
    if data.source == "scenes":
        check_revision(data)
        if split not in scenes.SIZES:
            raise DataError(f"scenes has no split '{split}': choose one of {', '.join(scenes.SIZES)}")
        return Scenes(split, min(scenes.SIZES[split], limit or scenes.SIZES[split]))
    if on_hub(data):
        _check_names(data)
        there, layout = repository(data), known(data).layout
        labels = labels_of(data, layout)  # what it refuses is not downloaded
        pairs = open_remote(there, data, split, limit)
    else:
        pairs, layout = _local(find(data), split, data, skip=on_error == "skip")
        labels = labels_of(data, layout)
    size = min(len(pairs), limit or len(pairs))
    name = f"{data.source}, split {split}"
    log.info("%s: %d images, %d classes (%s)", name, size, len(labels.classes), listed(labels.classes))
    return Labelled(pairs, size, name, data.max_pixels, labels)


def open_images(
    data: Data, split: str, limit: int | None = None, on_error: OnError = "stop"
) -> Scenes | Labelled | Photos | Readable:
    """Open a split with the labels that it may have: as `open_source`, else as `open_photos`.

    With `on_error` "skip", the next readable row takes the place of a broken one. Raises DataError when there are no
    images.
    """
    try:
        source = open_source(data, split, limit, on_error)
    except (NoClasses, NoLayout):
        return open_photos(data, split, limit, on_error)
    return readable(source, on_error)


def open_photos(
    data: Data, split: str, limit: int | None = None, on_error: OnError = "stop"
) -> Scenes | Photos | Readable:
    """Open the images of a split, whose labels may be missing or hold anything: where neither a layout nor the patterns
    find any, the photographs in folder `split`, or else in `data` itself where it has no folders of pictures.
    `on_error` is as for `open_images`.

    Raises DataError when there are none.
    """
    if data.source == "scenes":
        return open_source(data, split, limit)
    pairs: Pairs
    if on_hub(data):
        _check_names(data)
        pairs = open_remote(repository(data), data, split, limit, labels=False)
    else:
        try:
            pairs, _ = _local(find(data), split, data, labels=False)
        except NoLayout as error:
            pairs = _photographs(data, split, error)
    photos = Photos(pairs, min(len(pairs), limit or len(pairs)), f"{data.source}, split {split}", data.max_pixels)
    return readable(photos, on_error)


def _photographs(data: Data, split: str, error: NoLayout) -> Files:
    tree = open_tree(Path(data.source))
    inside = tree.names(split)
    names = [name for name in inside or tree.names() if PurePosixPath(name).suffix.lower() in IMAGES]
    if not names:
        raise DataError(f"neither {tree.where(split)} nor {data.source} holds photographs, and {error}") from error
    if other := next((name for name in names if not inside and "/" in name), None):
        raise DataError(
            f"{tree.where(split)} holds no photographs, but another folder does ({tree.where(other)}): give "
            f"a folder that holds photographs alone, or the split's own name. Also, {error}"
        ) from error
    if data.images:
        log.warning("data.images matches no file of split '%s' in %s: it is taken for photographs", split, data.source)
    log.info("%d photographs of %s, without labels", len(names), tree.where(split) if inside else data.source)
    return Files(tree, Layout([(name, name, None) for name in names]))


def readable(source: Scenes | Photos, on_error: OnError) -> Scenes | Photos | Readable:
    """The source, and with `on_error` "skip" the next readable row in the place of a broken one."""
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


def _local(path: Path, split: str, data: Data, skip: bool = False, labels: bool = True) -> tuple[Pairs, Layout | None]:
    """The pairs in a folder or an archive: by the patterns of data.images, else by a known layout, else by a table.

    Without `labels`, or with `skip`, labels may be missing.
    """
    if data.configuration:  # only tables have configurations
        if not (path / data.configuration).is_dir():
            raise ConfigError(f"{path} has no folder '{data.configuration}': check data.configuration")
        return _table(path / data.configuration, split, data, labels), None
    tree = open_tree(path)
    match = (tree, matching(tree, split, data.images, data.annotations)) if data.images else recognise(tree, split)
    if match:
        tree, layout = match
        layout = complete(tree, layout, split, data.names, skip=skip or not labels)
        return Files(tree, layout), layout
    if path.is_dir() and is_table(path):
        return _table(path, split, data, labels), None
    raise NoLayout(
        f"{path} has no split '{split}' in a known layout, {KNOWN}: for any other layout set data.images "
        "and data.annotations"
    )


def _table(folder: Path, split: str, data: Data, labels: bool) -> Pairs:
    _check_names(data)
    return open_table(folder, split, data, labels)


def _check_names(data: Data) -> None:
    if data.names:
        raise ConfigError(f"{data.source} is a table, which data.names cannot choose from: set data.names to null")
