"""Which files of a folder make pairs of image and label, and how the labels' values are meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from segquant.base import classes
from segquant.base.errors import ConfigError, DataError
from segquant.data.tree import Archive, Folder

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
KNOWN = (
    "images/SPLIT with annotations/SPLIT (ADE20K), leftImg8bit/SPLIT with gtFine/SPLIT (Cityscapes), or SPLIT with "
    "SPLITannot (CamVid)"
)
# Cityscapes' labelIds and trainIds (cityscapesscripts.helpers.labels); the others do not count.
TRAIN_IDS = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
_ANY = {"**/": "((?:.*/)?)", "**": "(.*)", "*": "([^/]*)"}
_WILD = re.compile(r"(\*\*/|\*\*|\*)")


@dataclass(frozen=True)
class Layout:
    """`pairs` of (id, image's name, label's name).

    `reduce_labels` says that 0 is no class and the others are one too high, `ignore` which values, as they are
    stored, do not count; `ids` gives the class ids of values where they are others, and all else does not count.
    """

    pairs: Sequence[tuple[str, str, str]]
    classes: Sequence[str]
    reduce_labels: bool = False
    ignore: Sequence[int] = (255,)
    ids: Mapping[int, int] | None = None


def recognise(tree: Folder | Archive, split: str) -> tuple[Folder | Archive, Layout] | None:
    """ADE20K's, Cityscapes' or CamVid's layout, whichever has files of this split, and where it was found.

    That may be a folder in `tree`, if there is just one such.
    """
    for layout in (_ade, _cityscapes, _camvid):
        if found := layout(tree, split):
            return tree, found
    below = [tree.below(folder) for folder in tree.folders()]
    inside = [(one, found) for one in below for layout in (_ade, _cityscapes, _camvid) if (found := layout(one, split))]
    return inside[0] if len(inside) == 1 else None


def matching(tree: Folder | Archive, split: str, images: str, annotations: str) -> Layout:
    """Pairs by two patterns in which {split} stands for the split, `*` for any text of one name and `**` of many.

    What the wildcards stand for in an image's name stands in its label's, in the same order, and is its id; as
    elsewhere `**/` may be no folder at all. Raises ConfigError when the two have different wildcards, DataError when
    nothing matches.
    """
    images, annotations = (one.replace("{split}", split).removeprefix("./") for one in (images, annotations))
    if not _WILD.search(images) or _WILD.findall(images) != _WILD.findall(annotations):
        raise ConfigError(
            f"data.images '{images}' and data.annotations '{annotations}' must have the same wildcards (* and **), one "
            "at least: what they stand for names the pair"
        )
    parts = _WILD.split(images)
    *body, suffix = (_ANY.get(part) or re.escape(part) for part in parts)
    pattern = re.compile("".join(body) + f"(?i:{suffix})")
    label = _WILD.sub("{}", annotations.replace("{", "{{").replace("}", "}}"))
    names = tree.names(_folder(parts[0]))
    texts = [(name, found.groups()) for name in names if (found := pattern.fullmatch(name))]
    pairs = [
        ("-".join(t.strip("/").replace("/", "-") for t in held if t), name, label.format(*held)) for name, held in texts
    ]
    if not pairs:
        raise DataError(
            f"{tree.where(images)} matches no file: see data.images (its wildcards are * and **) and data.source"
        )
    return Layout(_checked(tree, pairs, tree.names(_folder(_WILD.split(annotations)[0]))), ())


def _ade(tree: Folder | Archive, split: str) -> Layout | None:
    split = {"train": "training", "val": "validation"}.get(split, split)
    folders = f"images/{split}", f"annotations/{split}"
    pairs = _pairs(tree, *folders, lambda image: f"{folders[1]}/{image.stem}.png")
    return pairs and Layout(pairs, classes.ADE20K, reduce_labels=True)


def _cityscapes(tree: Folder | Archive, split: str) -> Layout | None:
    """With trainIds where they have been made, else with the labelIds that are published."""
    folders = f"leftImg8bit/{split}", f"gtFine/{split}"
    trained = any(name.endswith("_labelTrainIds.png") for name in tree.names(folders[1]))

    def label(image: PurePosixPath) -> str:
        stem, kind = image.stem.removesuffix("_leftImg8bit"), "labelTrainIds" if trained else "labelIds"
        return f"{folders[1]}/{image.parent.name}/{stem}_gtFine_{kind}.png"

    pairs = _pairs(tree, *folders, label)
    return pairs and Layout(pairs, classes.CITYSCAPES, ids=None if trained else TRAIN_IDS)


def _camvid(tree: Folder | Archive, split: str) -> Layout | None:
    pairs = _pairs(tree, split, f"{split}annot", lambda image: f"{split}annot/{image.stem}.png")
    return pairs and Layout(pairs, classes.CAMVID, ignore=(11, 255))


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _pairs(tree: Folder | Archive, images: str, labels: str, label_of: Callable[[PurePosixPath], str]):
    """Pairs of the images in a folder; None where there is no such folder or none of labels."""
    if not (tree.has(images) and tree.has(labels)):
        return None
    found = [PurePosixPath(name) for name in tree.names(images)]
    pairs = [(path.stem, str(path), label_of(path)) for path in found if path.suffix.lower() in IMAGES]
    if not pairs:
        raise DataError(f"{tree.where(images)} has no images")
    return _checked(tree, pairs, tree.names(labels))


def _checked(tree: Folder | Archive, pairs: list[tuple[str, str, str]], labels: Iterable[str]):
    """`pairs`, each with a name of its own and a label that is there, its suffix in whatever case."""
    known, names = {_lower_suffix(label): label for label in labels}, {}
    for name, image, label in pairs:
        if names.setdefault(name, image) != image:
            other = names[name].rpartition("/")[2]
            raise DataError(f"{tree.where(image)} and {other} have one name, and so one label: rename one")
        if _lower_suffix(label) not in known:
            raise DataError(f"{tree.where(image)} has no label: {tree.where(label)} does not exist")
    return tuple((name, image, known[_lower_suffix(label)]) for name, image, label in pairs)


def _lower_suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{dot}{suffix.lower()}"
