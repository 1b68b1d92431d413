"""Which files of a folder make pairs of image and label, and how the labels' values are meant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from segquant.data import classes
from segquant.data.tree import Archive, Folder
from segquant.errors import ConfigError, DataError

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
KNOWN = (
    "images/SPLIT with annotations/SPLIT (ADE20K), leftImg8bit/SPLIT with gtFine/SPLIT (Cityscapes), or SPLIT with "
    "SPLITannot (CamVid)"
)


@dataclass(frozen=True)
class Layout:
    """`pairs` of (id, image's name, label's name).

    `reduce_labels` says that 0 is no class and the others are one too high, `ignore` which values, as they are
    stored, do not count.
    """

    pairs: Sequence[tuple[str, str, str]]
    classes: Sequence[str]
    reduce_labels: bool = False
    ignore: Sequence[int] = (255,)


def recognise(tree: Folder | Archive, split: str) -> Layout | None:
    """ADE20K's, Cityscapes' or CamVid's layout, whichever has files of this split."""
    for layout in (_ade, _cityscapes, _camvid):
        found = layout(tree, split)
        if found is not None:
            return found
    return None


def matching(tree: Folder | Archive, split: str, images: str, annotations: str) -> Layout:
    """Pairs by two patterns in which {split} stands for the split, `*` for any text of one name and `**` of many.

    What the wildcards stand for in an image's name stands in its label's, in the same order, and is its id.
    Raises ConfigError when the two have different wildcards, DataError when nothing matches.
    """
    images, annotations = (pattern.replace("{split}", split) for pattern in (images, annotations))
    wild = re.compile(r"\*\*|\*")
    if not wild.search(images) or wild.findall(images) != wild.findall(annotations):
        raise ConfigError(
            f"data.images '{images}' and data.annotations '{annotations}' must have the same wildcards, one at least: "
            "what they stand for names the pair"
        )
    any_text = {"*": "([^/]*)", "**": "(.*)"}
    parts = re.split(r"(\*\*|\*)", images)
    pattern = re.compile("".join(any_text.get(part) or re.escape(part) for part in parts))
    label = wild.sub("{}", annotations.replace("{", "{{").replace("}", "}}"))
    texts = ((name, found.groups()) for name in tree.names(_folder(parts[0])) if (found := pattern.fullmatch(name)))
    pairs = [("-".join(held).replace("/", "-"), name, label.format(*held)) for name, held in texts]
    if not pairs:
        raise DataError(f"{tree.where(images)} matches no file: data.images must be a pattern below data.source")
    return Layout(_checked(tree, pairs, tree.names(_folder(wild.split(annotations)[0]))), ())


def _ade(tree: Folder | Archive, split: str) -> Layout | None:
    split = {"train": "training", "val": "validation"}.get(split, split)
    folders = f"images/{split}", f"annotations/{split}"
    pairs = _pairs(tree, *folders, lambda image: f"{folders[1]}/{image.stem}.png")
    return pairs and Layout(pairs, classes.ADE20K, reduce_labels=True)


def _cityscapes(tree: Folder | Archive, split: str) -> Layout | None:
    folders = f"leftImg8bit/{split}", f"gtFine/{split}"

    def label(image: PurePosixPath) -> str:
        stem = image.stem.removesuffix("_leftImg8bit")
        return f"{folders[1]}/{image.parent.name}/{stem}_gtFine_labelTrainIds.png"

    pairs = _pairs(tree, *folders, label)
    return pairs and Layout(pairs, classes.CITYSCAPES)


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
    """`pairs`, each with a name of its own and a label that is there."""
    known, names = set(labels), {}
    for name, image, label in pairs:
        if names.setdefault(name, image) != image:
            other = names[name].rpartition("/")[2]
            raise DataError(f"{tree.where(image)} and {other} have one name, and so one label: rename one")
        if label not in known:
            raise DataError(f"{tree.where(image)} has no label: {tree.where(label)} does not exist")
    return tuple(pairs)
