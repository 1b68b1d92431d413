"""Sources of labelled images: the built-in scenes, a folder, a zip archive, Parquet files, or the hub.

A source has a length, `source[i]` is a shard row (`id`, `image` and `annotation` as encoded bytes, `width`, `height`),
and `source.classes` names its class ids. Whatever the layout stores, an annotation is a PNG of uint8 class ids of the
same size as the image, with 255 for ignored pixels.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
from PIL import Image

from segquant import scenes
from segquant.base import classes
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import IGNORE, Pair, decode_label, image_size
from segquant.data.layouts import IMAGES, KNOWN, Layout, matching, recognise
from segquant.data.remote import find, known, on_hub, open_remote, repository
from segquant.data.tables import is_table, open_table
from segquant.data.tree import Archive, Folder, open_tree

log = logging.getLogger(__name__)
CLASSES = {"ade20k": classes.ADE20K, "cityscapes": classes.CITYSCAPES, "camvid": classes.CAMVID}


class Pairs(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Pair: ...


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


@dataclass(frozen=True)
class Files:
    """The pairs of files in a folder or an archive."""

    tree: Folder | Archive
    layout: Layout

    def __len__(self) -> int:
        return len(self.layout.pairs)

    def __getitem__(self, index: int) -> Pair:
        name, image, label = self.layout.pairs[index]
        read, where = self.tree.read, self.tree.where
        return Pair(name, read(image), read(label), where(image), where(label))


@dataclass(frozen=True)
class Labelled:
    """The first `size` of `pairs`; `lookup` (256,) maps the stored label values to class ids."""

    pairs: Pairs
    size: int
    classes: Sequence[str]
    lookup: np.ndarray

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        pair = self.pairs[index]
        width, height = image_size(pair.image, pair.image_name)
        labels = self.lookup[decode_label(pair.label, pair.label_name)]
        if labels.shape != (height, width):
            raise DataError(
                f"{pair.label_name} is {labels.shape[1]}x{labels.shape[0]} but its image {pair.image_name} is "
                f"{width}x{height}: make them the same size"
            )
        unknown = np.setdiff1d(labels[labels != IGNORE], np.arange(len(self.classes)))
        if unknown.size:
            raise DataError(
                f"{pair.label_name} holds class id {unknown[0]}, but there are {len(self.classes)} classes: check "
                "data.classes, data.ignore and data.reduce_labels"
            )
        encoded = io.BytesIO()
        Image.fromarray(labels).save(encoded, "PNG", compress_level=3)
        return {"id": pair.id, "image": pair.image, "annotation": encoded.getvalue(), "width": width, "height": height}


@dataclass(frozen=True)
class Photos:
    """Images without labels in a folder or an archive: `annotation` is None in their rows."""

    tree: Folder | Archive
    names: Sequence[str]
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        name = self.names[index]
        image = self.tree.read(name)
        width, height = image_size(image, self.tree.where(name))
        return {"id": name, "image": image, "annotation": None, "width": width, "height": height}


class _NoLayout(DataError):
    pass


def open_source(data: str | Data, split: str, limit: int | None = None) -> Scenes | Labelled:
    """Open at most `limit` images of one split of `data`; a string is short for Data(source).

    Raises DataError when the data, the split or a label is missing, ConfigError when the classes or the meaning of the
    label values are not clear.
    """
    data = Data(data) if isinstance(data, str) else data
    if data.source == "scenes":
        if split not in scenes.SIZES:
            raise DataError(f"scenes has no split '{split}': choose one of {', '.join(scenes.SIZES)}")
        return Scenes(split, min(scenes.SIZES[split], limit or scenes.SIZES[split]))
    if on_hub(data):
        there, layout = repository(data), known(data).layout
        _classes(data, layout), _lookup(data, layout)  # what they refuse is not downloaded
        pairs = open_remote(there, data, split, limit)
    else:
        pairs, layout = _local(find(data), split, data)
    names, lookup = _classes(data, layout), _lookup(data, layout)
    size = min(len(pairs), limit or len(pairs))
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    log.info("%s, split %s: %d images, %d classes (%s)", data.source, split, size, len(names), listed)
    return Labelled(pairs, size, names, lookup)


def open_images(data: Data, split: str, limit: int | None = None) -> Scenes | Labelled | Photos:
    """Open a split whose labels are not needed: as `open_source`, else the photographs in folder `split` or in `data`.

    Raises DataError when there are none.
    """
    try:
        return open_source(data, split, limit)
    except _NoLayout as error:
        tree = open_tree(Path(data.source))
        names = tree.names(split) or [name for name in tree.names() if "/" not in name]
        photos = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGES]
        if not photos:
            raise DataError(f"neither {tree.where(split)} nor {data.source} holds photographs, and {error}") from error
        return Photos(tree, photos[:limit])


def rows(source: Scenes | Labelled | Photos) -> Iterator[dict]:
    """Yield the rows of a source in order."""
    return (source[i] for i in range(len(source)))


def _local(path: Path, split: str, data: Data) -> tuple[Pairs, Layout | None]:
    """The pairs in a folder or an archive: by the patterns of data.images, else by a known layout, else by a table."""
    if data.configuration:  # only tables have configurations
        if not (path / data.configuration).is_dir():
            raise ConfigError(f"{path} has no folder '{data.configuration}': check data.configuration")
        return open_table(path / data.configuration, split, data), None
    tree = open_tree(path)
    if data.images:
        layout = matching(tree, split, data.images, data.annotations)
        return Files(tree, layout), layout
    if match := recognise(tree, split):
        return Files(*match), match[1]
    if path.is_dir() and is_table(path):
        return open_table(path, split, data), None
    raise _NoLayout(
        f"{path} has no split '{split}' in a known layout, {KNOWN}: for any other layout set data.images "
        "and data.annotations"
    )


def _classes(data: Data, layout: Layout | None) -> Sequence[str]:
    """The names of the classes: data.classes, else the layout's."""
    if data.classes is None:
        if layout is None or not layout.classes:
            raise ConfigError(
                f"{data.source} does not name its classes: set data.classes to one of {', '.join(CLASSES)} or to a "
                "text file with a class per line"
            )
        return layout.classes
    if data.classes in CLASSES:
        return CLASSES[data.classes]
    try:
        names = [line.strip() for line in Path(data.classes).read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.classes '{data.classes}' is unknown: give one of {', '.join(CLASSES)} or a text file with a class "
            "per line"
        ) from error
    if "" in names:
        raise ConfigError(
            f"data.classes '{data.classes}' has no name in line {names.index('') + 1}: write a class per line"
        )
    if not 0 < len(names) <= IGNORE:
        raise ConfigError(
            f"data.classes '{data.classes}' names {len(names)} classes: name 1 to {IGNORE}, a class per line"
        )
    return names


def _lookup(data: Data, layout: Layout | None) -> np.ndarray:
    """Lookup table uint8 (256,) from stored label values to class ids; 255 for values without a class."""
    plain = Layout((), ())
    layout = layout or plain
    as_stored = replace(layout, pairs=(), classes=()) == plain
    if data.classes and not as_stored and None in (data.reduce_labels, data.ignore):
        raise ConfigError(
            f"{data.source} has the labels of a known layout, but data.classes names other classes: set "
            "data.reduce_labels and data.ignore too (false and [255] keep the stored values)"
        )
    if data.classes == "ade20k" and as_stored and data.reduce_labels is None:
        raise ConfigError(
            f"{data.source} may hold label values 0 to 149 or 1 to 150: set data.reduce_labels to true where 0 is no "
            "class (as in ADE20K's archive), else to false"
        )
    reduce = layout.reduce_labels if data.reduce_labels is None else data.reduce_labels
    table = np.arange(256)
    if layout.ids is not None and data.reduce_labels is None and not data.classes:
        table = np.array([layout.ids.get(value, IGNORE) for value in range(256)])
    if reduce:
        table = (table - 1) % 256  # 0 becomes 255
    table[list(layout.ignore if data.ignore is None else data.ignore)] = IGNORE
    return table.astype(np.uint8)
