"""What the stored values of a data set's labels mean: its classes, and the class id of each value or colour."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from segquant.base import classes
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError, one_line
from segquant.base.files import read_file
from segquant.data.images import IGNORE, histogram, strips
from segquant.data.layouts import Layout

log = logging.getLogger(__name__)
CLASSES = {"ade20k": classes.ADE20K, "cityscapes": classes.CITYSCAPES, "camvid": classes.CAMVID, "voc": classes.VOC}
_NO_CLASS = -1  # of a stored value that may not occur
_LARGEST = 1 << 20  # bytes of a list of classes
_NAMED = 12  # the most classes that a line names


class NoClasses(ConfigError):
    """The data set does not name its classes."""


@dataclass(frozen=True)
class Labels:
    """The names of the classes, and the class id of each stored value.

    `values` int16 (256,) holds class ids, IGNORE or _NO_CLASS; with `colors`, {0xRRGGBB: class id or IGNORE} takes its
    place. `assumed` says that 255 is ignored only by convention. `pixels` int64 (256,) counts the class ids, and as
    IGNORE the ignored pixels, of all labels so far.
    """

    classes: Sequence[str]
    values: np.ndarray
    colors: Mapping[int, int] | None = None
    assumed: bool = False
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))

    def ids(self, stored: np.ndarray, name: str) -> np.ndarray:
        """The class ids uint8 (H, W) of stored values uint8 (H, W), or of colours uint8 (H, W, 3).

        Raises ConfigError with `name` for a value that is no class: `data` is wrong then, and the file is not broken,
        so that no `eval.on_error` leaves it out.
        """
        ids = self._of_values(stored, name) if self.colors is None else self._of_colors(stored, name)
        self.pixels[:] += histogram(ids)
        return ids

    def check(self, name: str) -> None:
        """Hold all labels so far against the list of classes; `name` is the data set and its split.

        Warns in one line of classes without a labelled pixel. Raises DataError where 255, which is ignored by
        convention, must be a class: no label has more than a single class beside it.
        """
        labelled = self.pixels[: len(self.classes)] > 0
        if self.assumed and labelled.sum() == 1 and self.pixels[IGNORE]:
            raise DataError(
                f"{name} has labels of class {int(labelled.argmax())} alone, and the value 255, which does not count: "
                "if 255 is a class, name it in data.classes and set data.label_values, such as {0: 0, 255: 1}; if it "
                "is none, say so there, such as {0: 0, 1: 1, 255: null}"
            )
        missing = [text for text, present in zip(self.classes, labelled) if not present]
        if labelled.any() and missing:
            log.warning(
                "%s has no labelled pixel of %d of the %d classes: %s",
                name,
                len(missing),
                len(self.classes),
                listed(missing),
            )

    def _of_values(self, stored: np.ndarray, name: str) -> np.ndarray:
        present = np.flatnonzero(histogram(stored))
        for value, class_id in zip(present, self.values[present]):
            if class_id == _NO_CLASS:
                raise ConfigError(
                    f"{name} holds the value {value}, which is no class: give it one by data.label_values, or name it "
                    "in data.ignore if it does not count"
                )
            if class_id >= len(self.classes) and class_id != IGNORE:
                raise ConfigError(
                    f"{name} holds class id {class_id}, but there are {len(self.classes)} classes: check data.classes, "
                    "data.ignore, data.reduce_labels and data.label_values"
                )
        return self.values.astype(np.uint8)[stored]

    def _of_colors(self, stored: np.ndarray, name: str) -> np.ndarray:
        known = np.array(sorted(self.colors))
        ids_of_known = np.array([self.colors[color] for color in known.tolist()], np.uint8)
        ids = []
        for strip in strips(stored):
            packed = strip.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
            index = np.searchsorted(known, packed).clip(max=len(known) - 1)
            unknown = packed[known[index] != packed]
            if unknown.size:
                raise ConfigError(
                    f"{name} holds the colour '#{unknown[0]:06x}', which data.label_values lacks: give it a class "
                    "there, or null if it does not count"
                )
            ids.append(ids_of_known[index])
        return np.concatenate(ids)


def listed(names: Sequence[str]) -> str:
    """The first names in one line."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def labels_of(data: Data, layout: Layout | None) -> Labels:
    """What `data` says of labels, and for the rest what their layout (None: a table) says.

    Raises NoClasses where neither names the classes, ConfigError where the meaning of the stored values is not clear.
    """
    layout = layout or Layout(())
    if data.label_values:
        return _mapped(data, _names(data, layout.classes))
    names = _names(data, layout.classes)
    others = data.classes is not None and tuple(names) != tuple(layout.classes)
    if others and not layout.as_stored and None in (data.reduce_labels, data.ignore):
        raise ConfigError(
            f"{data.source} has the labels of a known layout, but data.classes names other classes: set "
            "data.reduce_labels and data.ignore too (false and [255] keep the stored values)"
        )
    if data.classes == "ade20k" and layout.as_stored and data.reduce_labels is None:
        raise ConfigError(
            f"{data.source} may hold label values 0 to 149 or 1 to 150: set data.reduce_labels to true where 0 is no "
            "class (as in ADE20K's archive), else to false"
        )
    values = np.arange(256, dtype=np.int16)
    if data.ignore == ():
        values[IGNORE] = _NO_CLASS
    if layout.ids is not None and data.reduce_labels is None and not others:
        if data.ignore == ():
            raise ConfigError(
                f"data.ignore is empty, but the layout of {data.source} has values without a class: leave it null, or "
                "give every value a class by data.label_values"
            )
        values = np.array([layout.ids.get(value, IGNORE) for value in range(256)], np.int16)
    if layout.reduce_labels if data.reduce_labels is None else data.reduce_labels:
        values = np.roll(values, 1)  # value 1 becomes class 0
        values[0], values[IGNORE] = IGNORE, IGNORE - 1
    if data.ignore != ():
        values[[IGNORE, *(layout.ignore if data.ignore is None else data.ignore)]] = IGNORE
    assumed = not layout.classes and np.flatnonzero(values == IGNORE).tolist() == [IGNORE]
    return Labels(names, values, assumed=assumed)


def _mapped(data: Data, names: Sequence[str]) -> Labels:
    """By data.label_values; of the values that it lacks, only ignored ones may occur."""
    for key, class_id in data.label_values.items():
        if class_id is not None and class_id >= len(names):
            raise ConfigError(f"data.label_values gives '{key}' class {class_id}, but there are {len(names)} classes")
    given = {key: IGNORE if class_id is None else class_id for key, class_id in data.label_values.items()}
    values = np.full(256, _NO_CLASS, np.int16)
    if next(iter(given)).startswith("#"):
        return Labels(names, values, {int(key[1:], 16): class_id for key, class_id in given.items()})
    values[list(data.ignore if data.ignore == () else (IGNORE, *(data.ignore or ())))] = IGNORE
    for key, class_id in given.items():
        values[int(key)] = class_id
    return Labels(names, values)


def _names(data: Data, known: Sequence[str]) -> Sequence[str]:
    """The names of the classes: data.classes, else the `known` ones."""
    if data.classes is None:
        if not known:
            raise NoClasses(
                f"{data.source} does not name its classes: set data.classes to one of {', '.join(CLASSES)} or to a "
                "text file with a class per line"
            )
        return known
    if data.classes in CLASSES:
        return CLASSES[data.classes]
    try:
        text = read_file(data.classes, _LARGEST).decode("utf-8-sig")
        names = [line.strip() for line in text.rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.classes '{data.classes}' is no text in UTF-8: save it so") from error
    except (OSError, ValueError) as error:  # ValueError: a zero in the name
        if Path(data.classes).exists():
            raise ConfigError(f"data.classes '{data.classes}' cannot be read: {one_line(error)}") from error
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
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigError(f"data.classes '{data.classes}' names two classes '{twice[0]}': rename one")
    return names
