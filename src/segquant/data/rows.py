"""Pairs of encoded images and labels as shard rows: checked, with labels of class ids, and broken ones left out."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from PIL import Image

from segquant.base.errors import DataError
from segquant.data.images import Pair, Photo, decode_label, image_size
from segquant.data.labels import Labels
from segquant.data.layouts import Layout
from segquant.data.tree import Archive, Folder

log = logging.getLogger(__name__)
OnError = Literal["stop", "skip"]


class Pairs(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Pair: ...
    def photo(self, index: int) -> Photo: ...  # whatever its label is


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
        if label is None:
            raise DataError(f"{where(image)} has no label")
        return Pair(name, read(image), read(label), where(image), where(label))

    def photo(self, index: int) -> Photo:
        name, image, _ = self.layout.pairs[index]
        return Photo(name, self.tree.read(image), self.tree.where(image))


@dataclass(frozen=True)
class Photos:
    """The images of the first `size` of `pairs`, whose labels are not looked at: `annotation` is None in their rows.

    `name` is the data set and its split; an image of more than `max_pixels` is refused.
    """

    pairs: Pairs
    size: int
    name: str
    max_pixels: int

    @property
    def classes(self) -> Sequence[str]:
        return ()

    def __len__(self) -> int:
        return self.size

    def image(self, index: int) -> bytes:
        return self.pairs.photo(index).image

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.size:
            raise IndexError(index)
        return self._row(index)

    def _row(self, index: int) -> dict:
        name, image, where = self.pairs.photo(index)
        width, height = image_size(image, where, self.max_pixels)
        return {"id": name, "image": image, "annotation": None, "width": width, "height": height}


@dataclass(frozen=True)
class Labelled(Photos):
    """The same with labels, which `labels` reads."""

    labels: Labels

    @property
    def classes(self) -> Sequence[str]:
        return self.labels.classes

    def _row(self, index: int) -> dict:
        pair = self.pairs[index]
        width, height = image_size(pair.image, pair.image_name, self.max_pixels, labelled=True)
        stored = decode_label(pair.label, pair.label_name, self.max_pixels, colors=self.labels.colors is not None)
        if stored.shape[:2] != (height, width):
            turned = stored.shape[:2] == (width, height)
            raise DataError(
                f"{pair.label_name} is {stored.shape[1]}x{stored.shape[0]} but its image {pair.image_name} is "
                f"{width}x{height}: make them the same size"
                + (" (EXIF's rotation of an image is not applied: save the image as it is shown)" if turned else "")
            )
        encoded = io.BytesIO()
        Image.fromarray(self.labels.ids(stored, pair.label_name)).save(encoded, "PNG", compress_level=3)
        return {"id": pair.id, "image": pair.image, "annotation": encoded.getvalue(), "width": width, "height": height}


class Readable(Sequence):
    """The rows of `source`, with the next readable row in the place of a broken one."""

    def __init__(self, source: Photos) -> None:
        self.source, self.classes = source, source.classes
        self._broken: dict[int, DataError] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < len(self):
            raise IndexError(index)
        for i in (*range(index, len(self)), *range(index)):
            if i in self._broken:
                continue
            try:
                return self.source[i]
            except DataError as reason:
                log.warning("skipped: %s", reason)
                self._broken[i] = reason
        reason = next(iter(self._broken.values()))
        raise DataError(f"{self.source.name}: none of its {len(self)} images can be read: {reason}") from reason


def rows(source: Any, skipped: list[str] | None = None) -> Iterator[dict]:
    """Yield the rows of a source in order; then hold its labels against its classes (`Labels.check`).

    With a list `skipped`, a broken row is left out, and its error is appended to the list.
    """
    for i in range(len(source)):
        try:
            row = source[i]
        except DataError as error:
            if skipped is None:
                raise
            log.warning("skipped: %s", error)
            skipped.append(str(error))
            continue
        yield row
    if isinstance(source, Labelled):
        source.labels.check(source.name)
