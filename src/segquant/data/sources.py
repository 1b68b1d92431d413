"""Where labelled images come from: the built-in scenes, a folder, a zip archive, Parquet, or the hub.

A source has a length, `[i]` gives a shard row (`id`, `image` and `annotation` as encoded bytes,
`width`, `height`), and `classes` names its class ids. Annotations leave here as PNGs of uint8 class
ids at the image's own size with 255 for ignored pixels, whatever the layout stored.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from segquant import scenes
from segquant.base import classes
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError
from segquant.base.hub import HUB_ID, data_snapshot
from segquant.data.images import IGNORE, Pair, decode_label, image_size
from segquant.data.layouts import IMAGES, KNOWN, Layout, matching, recognise
from segquant.data.tables import is_table, open_table
from segquant.data.tree import Archive, Folder, open_tree

log = logging.getLogger(__name__)
CLASSES = {"ade20k": classes.ADE20K, "cityscapes": classes.CITYSCAPES, "camvid": classes.CAMVID}


class Known(NamedTuple):
    """How a data set on the hub is read where it is not said otherwise."""

    revision: str | None = None
    configuration: str | None = None
    layout: Layout | None = None


HUB = {"zhoubolei/scene_parse_150": Known("refs/convert/parquet", "scene_parsing", Layout((), classes.ADE20K, True))}


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
    """Pairs of files in a folder or an archive."""

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
                f"{width}x{height}: they must be of one size"
            )
        bad = np.setdiff1d(labels[labels != IGNORE], np.arange(len(self.classes)))
        if bad.size:
            raise DataError(
                f"{pair.label_name} holds class id {bad[0]}, but there are {len(self.classes)} classes: see "
                "data.classes, data.ignore and data.reduce_labels"
            )
        encoded = io.BytesIO()
        Image.fromarray(labels).save(encoded, "PNG", compress_level=3)
        return {"id": pair.id, "image": pair.image, "annotation": encoded.getvalue(), "width": width, "height": height}


@dataclass(frozen=True)
class Photos:
    """Images of a folder or an archive that have no labels: their rows' `annotation` is None."""

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
    """Open one split of what `data` names (a string: its source), at most `limit` images of it.

    Raises DataError when there is no such data, split or pair, ConfigError when it is not said how to read it.
    """
    data = Data(data) if isinstance(data, str) else data
    if data.source == "scenes":
        if split not in scenes.SIZES:
            raise DataError(f"scenes has no split '{split}': choose one of {', '.join(scenes.SIZES)}")
        return Scenes(split, min(scenes.SIZES[split], limit or scenes.SIZES[split]))
    path = find(data)
    if on_hub(data):
        known = HUB.get(data.source, Known())
        folder = path / (data.configuration or known.configuration or "")
        pairs, layout = open_table(folder, split, data), known.layout
    else:
        pairs, layout = _local(path, split, data)
    names, lookup = _classes(data, layout), _lookup(data, layout)
    size = min(len(pairs), limit or len(pairs))
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    log.info("%s, split %s: %d images, %d classes (%s)", data.source, split, size, len(names), shown)
    return Labelled(pairs, size, names, lookup)


def open_images(data: Data, split: str, limit: int | None = None) -> Scenes | Labelled | Photos:
    """Open a split whose labels are not needed: as `open_source`, or else images in the folder `split` or in `data`."""
    try:
        return open_source(data, split, limit)
    except _NoLayout as error:
        tree = open_tree(Path(data.source))
        names = tree.names(split) or [name for name in tree.names() if "/" not in name]
        photos = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGES]
        if not photos:
            raise DataError(f"{tree.where(split)} and {data.source} hold no photographs, and {error}") from error
        return Photos(tree, photos[:limit])


def rows(source: Scenes | Labelled | Photos) -> Iterator[dict]:
    """The rows of a source in order."""
    return (source[i] for i in range(len(source)))


def on_hub(data: Data) -> bool:
    return not Path(data.source).exists()


def find(data: Data) -> Path:
    """Where the data are on this machine, fetched from the hub if need be."""
    path = Path(data.source)
    if not on_hub(data):
        if path.is_file() and path.suffix.lower() != ".zip":
            raise DataError(f"data source '{path}' is a file: give a folder, a zip archive or a hub id")
        return path
    if not HUB_ID.fullmatch(data.source):
        raise DataError(
            f"data source '{data.source}' is not there: give 'scenes', a labelled folder, a zip archive or a hub id "
            "(owner/name)"
        )
    known = HUB.get(data.source, Known())
    return data_snapshot(data.source, data.revision or known.revision, data.configuration or known.configuration)


def _local(path: Path, split: str, data: Data) -> tuple[Pairs, Layout | None]:
    """Pairs in a folder or an archive, by the patterns if there are any, else as a layout or a table has them."""
    if data.configuration:  # which only tables have
        if not (path / data.configuration).is_dir():
            raise ConfigError(f"{path} has no folder '{data.configuration}': see data.configuration")
        return open_table(path / data.configuration, split, data), None
    tree = open_tree(path)
    if data.images:
        layout = matching(tree, split, data.images, data.annotations)
        return Files(tree, layout), layout
    found = recognise(tree, split)
    if found:
        return Files(*found), found[1]
    if path.is_dir() and is_table(path):
        return open_table(path, split, data), None
    raise _NoLayout(
        f"{path} has no split '{split}' in a layout known here: {KNOWN}; for another one give data.images and "
        "data.annotations"
    )


def _classes(data: Data, layout: Layout | None) -> Sequence[str]:
    """The names of the classes, by data.classes or else as the layout has them."""
    if data.classes is None:
        if layout is None or not layout.classes:
            raise ConfigError(
                f"{data.source} does not name its classes: give data.classes, one of {', '.join(CLASSES)} or a text "
                "file with a name a line"
            )
        return layout.classes
    if data.classes in CLASSES:
        return CLASSES[data.classes]
    try:
        names = [line.strip() for line in Path(data.classes).read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.classes '{data.classes}' is none of {', '.join(CLASSES)} and no text file with a name a line"
        ) from error
    if "" in names:
        raise ConfigError(f"data.classes '{data.classes}' has no name in line {names.index('') + 1}: a class is a line")
    if not 0 < len(names) <= IGNORE:
        raise ConfigError(f"data.classes '{data.classes}' must name 1 to {IGNORE} classes, a name a line")
    return names


def _lookup(data: Data, layout: Layout | None) -> np.ndarray:
    """Class ids uint8 (256,) of the values that labels store; 255 for those that do not count."""
    plain = Layout((), ())
    layout = layout or plain
    as_stored = replace(layout, pairs=(), classes=()) == plain
    if data.classes and not as_stored and None in (data.reduce_labels, data.ignore):
        raise ConfigError(
            f"{data.source} has labels of a known layout, but classes of your own: say data.reduce_labels and "
            "data.ignore too (false and [255] take the labels as they are stored)"
        )
    if data.classes == "ade20k" and as_stored and data.reduce_labels is None:
        raise ConfigError(
            f"{data.source}: say data.reduce_labels, true where labels hold 1 to 150 and 0 is no class, as "
            "ADE20K's own do, false where they hold 0 to 149"
        )
    reduce = layout.reduce_labels if data.reduce_labels is None else data.reduce_labels
    table = np.arange(256)
    if layout.ids is not None and data.reduce_labels is None and not data.classes:
        table = np.array([layout.ids.get(value, IGNORE) for value in range(256)])
    if reduce:
        table = (table - 1) % 256  # 0 becomes 255
    table[list(layout.ignore if data.ignore is None else data.ignore)] = IGNORE
    return table.astype(np.uint8)
