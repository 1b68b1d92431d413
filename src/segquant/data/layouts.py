"""Find the pairs of image and label in a folder or archive, and what the values of the labels mean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonpath
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from segquant.base import classes
from segquant.base.data import MAX_PIXELS
from segquant.base.errors import ConfigError, DataError
from segquant.data.images import decode_label
from segquant.data.splits import names_of
from segquant.data.tree import Archive, Folder

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
# Cityscapes evaluates these labelIds; their trainIds are 0 to 18 in this order (cityscapesscripts.helpers.labels).
_LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
TRAIN_IDS = {label_id: train_id for train_id, label_id in enumerate(_LABEL_IDS)}
# Wildcards and the regular expressions that match the same text.
_ANY = {"**/": "((?:.*/)?)", "**": "(.*)", "*": "([^/]*)"}
_WILD = re.compile(r"(\*\*/|\*\*|\*)")


class NoLayout(DataError):
    """A folder or archive has no pairs in a known layout, or none by the patterns."""


_LIST = 1 << 26  # bytes of a list of names
_SAMPLE = 8  # labels that are looked into


class Signs(NamedTuple):
    """What tells a known data set from others in folders of the same names.

    `ids` is a regular expression for the ids of its pairs; one of its first labels holds one of `values`.
    """

    ids: str
    values: range


@dataclass(frozen=True)
class Layout:
    """The pairs of one split, their classes, and how stored label values become class ids.

    `pairs` holds (id, name of the image, name of the label), None for a missing label. `ids` maps stored values to
    class ids and drops all other values; None keeps the values as they are. `reduce_labels` subtracts 1 and drops 0.
    `ignore` lists further stored values without a class. `names` is the file that lists the ids of the split.
    """

    pairs: Sequence[tuple[str, str, str | None]]
    classes: Sequence[str] = ()
    reduce_labels: bool = False
    ignore: Sequence[int] = (255,)
    ids: Mapping[int, int] | None = None
    names: str | None = None
    signs: Signs | None = None

    @property
    def as_stored(self) -> bool:
        """Whether stored values are class ids, and 255 is ignored."""
        return not self.reduce_labels and tuple(self.ignore) == (255,) and self.ids is None


def recognise(tree: Folder | Archive, split: str) -> tuple[Folder | Archive, Layout] | None:
    """Recognise one of LAYOUTS in `tree`, or in the only folder below it that has one; by the split's name as it is
    given, else by another that it goes by.

    Returns the folder and its layout, or None. Raises DataError when a layout has no images, or is in several
    folders.
    """
    for name in names_of(split):
        if first := next(_layouts(tree, name), None):
            return first
        matches = {folder: next(_layouts(tree.below(folder), name), None) for folder in tree.folders()}
        below = {tree.where(folder): match for folder, match in matches.items() if match}
        if len(below) > 1:
            raise DataError(
                f"{len(below)} folders have a split '{name}' in a known layout ({', '.join(list(below)[:9])}): give "
                "one of them (of an archive: unpacked) as data.source or --data"
            )
        if below:
            return next(iter(below.values()))
    return None


def _layouts(tree: Folder | Archive, split: str) -> Iterator[tuple[Folder | Archive, Layout]]:
    for layout_of in LAYOUTS.values():
        if layout := layout_of(tree, split):
            yield tree, layout


def complete(tree: Folder | Archive, layout: Layout, split: str, names: str | None, skip: bool) -> Layout:
    """The pairs that the list `names` (None: the layout's own) names, in its order, or else all; held against `tree`.

    The layout keeps its classes only where the labels can be theirs. Raises DataError for a list or an image that is
    not there, for two images of one id and, unless `skip`, for an image without a label.
    """
    pairs, names = layout.pairs, names or layout.names
    if names:
        pairs = _listed(tree, pairs, tree.inside(names.replace("{split}", split)))
    layout = replace(layout, pairs=_checked(tree, pairs, skip))
    if layout.signs and not _shows(tree, layout):
        layout = Layout(layout.pairs)
    return layout


def _shows(tree: Folder | Archive, layout: Layout) -> bool:
    """Whether the labels are those of the data set that has this layout, as far as some of them tell."""
    labels = []
    for name, _, label in layout.pairs[:: max(1, len(layout.pairs) // _SAMPLE)][:_SAMPLE]:
        if not re.fullmatch(layout.signs.ids, name):
            return False
        try:
            labels += [decode_label(tree.read(label), label, MAX_PIXELS)] if label else []
        except DataError:  # broken, which is reported when it is read, or of colours, which no layout has
            continue
    if not any(label for _, _, label in layout.pairs):
        return True
    return any(np.isin(label, layout.signs.values).any() for label in labels)


def _listed(tree: Folder | Archive, pairs: Sequence[tuple[str, str, str]], names: str) -> list[tuple[str, str, str]]:
    """The pairs whose ids the text file `names` lists, a line each; an image's suffix does no harm."""
    where = tree.where(names)
    if names not in tree.names(_folder(names)):
        raise DataError(f"{where}, which lists the images of the split, is not there: check data.names and the split")
    try:
        lines = [line.strip() for line in tree.read(names, _LIST).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is no text in UTF-8 ({error}): list the name of an image in each line") from error
    by_id: dict[str, list[tuple[str, str, str]]] = {}
    for pair in pairs:
        by_id.setdefault(pair[0], []).append(pair)
    chosen: list[tuple[str, str, str]] = []
    for number, line in enumerate(lines, 1):
        name, key = PurePosixPath(line), _pair_id([line])
        if key not in by_id and name.suffix.lower() in IMAGES:
            key = _pair_id([str(name.with_suffix(""))])
        if line and key not in by_id:
            name = f"'{line[:99]}' in line {number}"
            raise DataError(f"{where} names {name}: there is no such image, or it is listed twice")
        chosen += by_id.pop(key) if line else []
    if not chosen:
        raise DataError(f"{where} lists no image: write the name of an image in each line")
    return chosen


def matching(tree: Folder | Archive, split: str, images: str, annotations: str) -> Layout:
    """Pair images and labels by two patterns.

    In a pattern {split} stands for the split, `*` matches any text in one name, `**` any text across folders, and `**/`
    also no folder at all. The text that the wildcards match in an image's name replaces the wildcards of `annotations`
    in the same order; it is also the id of the pair. Raises ConfigError when the two patterns have different wildcards,
    NoLayout when no file matches.
    """
    if _WILD.search(split):
        raise ConfigError(f"split '{split}' has a wildcard, so that several splits would be one: name one of them")
    images, annotations = (tree.inside(text.replace("{split}", split)) for text in (images, annotations))
    if not _WILD.search(images) or _WILD.findall(images) != _WILD.findall(annotations):
        raise ConfigError(
            f"data.images '{images}' and data.annotations '{annotations}' have different wildcards or none: use the "
            "same wildcards (* and **) in both, at least one, because the text that they match names the pair"
        )
    parts = _WILD.split(images)
    *body, suffix = (_ANY.get(part) or re.escape(part) for part in parts)
    pattern = re.compile("".join(body) + f"(?i:{suffix})")
    label = _WILD.sub("{}", annotations.replace("{", "{{").replace("}", "}}"))
    matches = [match for name in tree.names(_folder(parts[0])) if (match := pattern.fullmatch(name))]
    pairs = [(_pair_id(match.groups()), match.string, label.format(*match.groups())) for match in matches]
    if not pairs:
        raise NoLayout(
            f"{tree.where(images)} matches no file: check data.images (its wildcards are * and **), data.source and "
            "the split"
        )
    return Layout(pairs)


def _pair_id(texts: Iterable[str]) -> str:
    return "-".join(text.strip("/").replace("/", "-") for text in texts if text)


def _ade(tree: Folder | Archive, split: str) -> Layout | None:
    images, labels = f"images/{split}", f"annotations/{split}"
    pairs = _pairs(tree, images, labels, lambda image: f"{labels}/{image.stem}.png")
    return pairs and Layout(pairs, classes.ADE20K, reduce_labels=True, signs=Signs("ADE_.*", range(21, 151)))


def _cityscapes(tree: Folder | Archive, split: str) -> Layout | None:
    """Use trainIds where they exist, else the labelIds of the published archives."""
    folders = f"leftImg8bit/{split}", f"gtFine/{split}"
    has_train_ids = any(name.endswith("_labelTrainIds.png") for name in tree.names(folders[1]))

    def label(image: PurePosixPath) -> str:
        stem, kind = image.stem.removesuffix("_leftImg8bit"), "labelTrainIds" if has_train_ids else "labelIds"
        return f"{folders[1]}/{image.parent.name}/{stem}_gtFine_{kind}.png"

    pairs = _pairs(tree, *folders, label)
    return pairs and Layout(pairs, classes.CITYSCAPES, ids=None if has_train_ids else TRAIN_IDS)


def _camvid(tree: Folder | Archive, split: str) -> Layout | None:
    pairs = _pairs(tree, split, f"{split}annot", lambda image: f"{split}annot/{image.stem}.png")
    return pairs and Layout(pairs, classes.CAMVID, ignore=(11, 255), signs=Signs(".*", range(10, 12)))


def _voc(tree: Folder | Archive, split: str) -> Layout | None:
    names = f"ImageSets/Segmentation/{split}.txt"
    if names not in tree.names(_folder(names)):
        return None
    pairs = _pairs(tree, "JPEGImages", "SegmentationClass", lambda image: f"SegmentationClass/{image.stem}.png")
    return pairs and Layout(pairs, classes.VOC, names=names, signs=Signs(r"(\d{4}_)?\d{6}", range(5, 21)))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _pairs(tree: Folder | Archive, images: str, labels: str, label_of: Callable[[PurePosixPath], str]):
    """Pair the images in folder `images` with their labels; None where the folder of images or labels is missing."""
    if not (tree.has(images) and tree.has(labels)):
        return None
    paths = [PurePosixPath(name) for name in tree.names(images)]
    pairs = [(path.stem, str(path), label_of(path)) for path in paths if path.suffix.lower() in IMAGES]
    if not pairs:
        raise DataError(f"{tree.where(images)} has no images: add images ({', '.join(sorted(IMAGES))})")
    return pairs


def _checked(tree: Folder | Archive, pairs: Sequence[tuple[str, str, str]], skip: bool):
    """Check that ids are unique and labels exist, and give each label its stored name: a suffix may be in any case."""
    folder = commonpath({_folder(label) for _, _, label in pairs})
    stored, names = tree.names(folder), {}
    known = {_lower_suffix(label): label for label in stored} | {label: label for label in stored}
    for name, image, label in pairs:
        if names.setdefault(name, image) != image:
            other = names[name].rpartition("/")[2]
            raise DataError(
                f"{tree.where(image)} and {other} have the same name and so the same label: rename one of them"
            )
        if label not in known and _lower_suffix(label) not in known and not skip:
            form = unicodedata.normalize("NFC", label)
            if other := next((other for other in stored if unicodedata.normalize("NFC", other) == form), None):
                raise DataError(
                    f"{tree.where(image)} and {tree.where(other)} have names in two Unicode forms (NFC and NFD), which "
                    "look the same: rename one of them"
                )
            raise DataError(
                f"{tree.where(image)} has no label: add {tree.where(label)} or remove the image (eval.on_error: skip "
                "leaves such images out, and so do lists by data.names)"
            )
    return tuple((name, image, known.get(label, known.get(_lower_suffix(label)))) for name, image, label in pairs)


def _lower_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"


# In this order. A function gives None where its folders are missing, so that the next one, plain photographs and tables
# are tried; a DataError ends the search.
LAYOUTS: dict[str, Callable[[Folder | Archive, str], Layout | None]] = {
    "images/SPLIT with annotations/SPLIT (ADE20K)": _ade,
    "leftImg8bit/SPLIT with gtFine/SPLIT (Cityscapes)": _cityscapes,
    "SPLIT with SPLITannot (CamVid)": _camvid,
    "JPEGImages with SegmentationClass and ImageSets/Segmentation/SPLIT.txt (Pascal VOC)": _voc,
}
KNOWN = ", ".join(LAYOUTS)
