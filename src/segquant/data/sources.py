"""Where labelled images come from: the built-in scenes or a folder.

A source has a length, `[i]` gives a shard row (`id`, `image` and `annotation` as encoded bytes,
`width`, `height`), and `classes` names its class ids. Annotations leave here as PNGs of uint8 class
ids at the image's own size with 255 for ignored pixels, whatever the layout stored.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segquant.data import classes, scenes
from segquant.data.images import IGNORE, decode_image
from segquant.errors import DataError

_IMAGES = {".jpg", ".jpeg", ".png"}


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
class Folder:
    """Image and label files; `lookup` (256,) maps the stored label values to class ids."""

    pairs: Sequence[tuple[Path, Path]]
    classes: Sequence[str]
    lookup: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict:
        image_path, label_path = self.pairs[index]
        data = image_path.read_bytes()
        width, height = decode_image(data, str(image_path)).size
        labels = self.lookup[_read_label(label_path)]
        if labels.shape != (height, width):
            raise DataError(
                f"{label_path} is {labels.shape[1]}x{labels.shape[0]} but its image {image_path.name} is "
                f"{width}x{height}: they must be of one size"
            )
        bad = np.setdiff1d(labels[labels != IGNORE], np.arange(len(self.classes)))
        if bad.size:
            raise DataError(f"{label_path} holds class id {bad[0]}, but the layout has {len(self.classes)} classes")
        encoded = io.BytesIO()
        Image.fromarray(labels).save(encoded, "PNG", compress_level=3)
        return {
            "id": image_path.stem,
            "image": data,
            "annotation": encoded.getvalue(),
            "width": width,
            "height": height,
        }


def open_source(spec: str, split: str, limit: int | None = None) -> Scenes | Folder:
    """Open one split of `scenes` or of a folder, at most `limit` images of it.

    Raises DataError when there is no such split, no pair, or no known layout.
    """
    if spec == "scenes":
        if split not in scenes.SIZES:
            raise DataError(f"scenes has no split '{split}': choose one of {', '.join(scenes.SIZES)}")
        return Scenes(split, min(scenes.SIZES[split], limit or scenes.SIZES[split]))
    root = Path(spec)
    if not root.is_dir():
        raise DataError(f"data source '{spec}' is not a folder: give 'scenes' or the path of a labelled folder")
    for layout in (_ade, _cityscapes, _camvid):
        found = layout(root, split)
        if found is not None:
            images, label_of, names, lookup = found
            return Folder(_pairs(images, label_of, limit), names, lookup)
    raise DataError(
        f"{spec} has no split '{split}' in a layout known here: images/{split} with annotations/{split} (ADE20K), "
        f"leftImg8bit/{split} with gtFine/{split} (Cityscapes), or {split} with {split}annot (CamVid)"
    )


def rows(source: Scenes | Folder) -> Iterator[dict]:
    """The rows of a source in order."""
    return (source[i] for i in range(len(source)))


def _read_label(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise DataError(f"{path} is a {image.mode} image: a label must be 8-bit with one class id a pixel")
            return np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not a readable label ({error})") from error


def _pairs(folder: Path, label_of: Callable[[Path], Path], limit: int | None) -> tuple[tuple[Path, Path], ...]:
    images = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _IMAGES)
    if not images:
        raise DataError(f"{folder} has no images")
    names: dict[str, Path] = {}
    for image in images:
        if names.setdefault(image.stem, image) != image:
            raise DataError(f"{image} and {names[image.stem]} have one name, and so one label: rename one")
    pairs = tuple((image, label_of(image)) for image in images[:limit])
    for image, label in pairs:
        if not label.is_file():
            raise DataError(f"{image} has no label: {label} does not exist")
    return pairs


def _ade(root: Path, split: str):
    split = {"train": "training", "val": "validation"}.get(split, split)
    images, labels = root / "images" / split, root / "annotations" / split
    if not (images.is_dir() and labels.is_dir()):
        return None
    lookup = (np.arange(256) - 1).astype(np.uint8)  # 0 = other becomes 255 = ignore
    return images, lambda p: labels / f"{p.stem}.png", classes.ADE20K, lookup


def _cityscapes(root: Path, split: str):
    images, labels = root / "leftImg8bit" / split, root / "gtFine" / split
    if not (images.is_dir() and labels.is_dir()):
        return None

    def label(image: Path) -> Path:
        stem = image.stem.removesuffix("_leftImg8bit")
        return labels / image.parent.name / f"{stem}_gtFine_labelTrainIds.png"

    return images, label, classes.CITYSCAPES, np.arange(256).astype(np.uint8)


def _camvid(root: Path, split: str):
    images, labels = root / split, root / f"{split}annot"
    if not (images.is_dir() and labels.is_dir()):
        return None
    lookup = np.arange(256).astype(np.uint8)
    lookup[11] = IGNORE
    return images, lambda p: labels / f"{p.stem}.png", classes.CAMVID, lookup
