"""Score a model on labelled rows: one confusion matrix, and the share of pixels that float32 gives too."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from segquant.base.config import Eval
from segquant.base.errors import DataError, SegquantError
from segquant.base.progress import progress
from segquant.data.images import IGNORE, decode_annotation
from segquant.data.protocols import IMAGENET, Normalization
from segquant.evaluation import metric
from segquant.evaluation.predict import predict

_DEFAULTS = Eval()


@dataclass
class Tally:
    """Counts over some images, which add up: `same` of all `pixels` have the reference's class.

    `images` has each image's id and `metric.cells`; `pictures` are class maps uint8 (H, W) by id, in the data set's
    classes; `skipped` says which rows were, and why.
    """

    confusion: torch.Tensor
    same: int = 0
    pixels: int = 0
    images: list[tuple[str, np.ndarray]] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        np.savez_compressed(
            file,
            *self.pictures.values(),
            confusion=self.confusion.cpu().numpy(),
            names=list(self.pictures),
            counts=[self.same, self.pixels],
            skipped=self.skipped,
            ids=[name for name, _ in self.images],
            cells=np.concatenate([cells for _, cells in self.images] or [np.zeros((0, 3), np.int64)]),
            ends=np.cumsum([len(cells) for _, cells in self.images], dtype=np.int64),
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Tally:
        with np.load(io.BytesIO(data)) as held:  # refuses pickles
            pictures = {str(name): held[f"arr_{i}"] for i, name in enumerate(held["names"])}
            images = list(zip(held["ids"].tolist(), np.split(held["cells"], held["ends"][:-1])))
            counts = held["counts"].tolist()
            return cls(torch.from_numpy(held["confusion"]), *counts, images, pictures, held["skipped"].tolist())


@dataclass(frozen=True)
class Evaluation:
    """`agreement` is the fraction of all pixels with the reference's class (of the model's own classes),
    None without a reference.

    `images` has each image's id and `metric.cells`; `pictures` are the class maps uint8 (H, W) of the first images,
    by id, in the data set's classes; `skipped` says for each row that was left out which and why.
    """

    scores: metric.Scores
    agreement: float | None
    images: list[tuple[str, np.ndarray]]
    pictures: dict[str, np.ndarray]
    skipped: list[str]

    @property
    def n_images(self) -> int:
        return len(self.images)


def evaluate(
    model: nn.Module, rows: Iterable[dict], total: int, *, desc: str = "evaluate", **options: Any
) -> Evaluation:
    """Evaluate on `rows` (as in shards), `total` of them, in this process; options as `tally` takes them."""
    with progress(total=total, desc=desc, unit="image") as bar:
        return summary([tally(model, rows, done=bar.update, **options)])


def tally(
    model: nn.Module,
    rows: Iterable[dict],
    *,
    num_classes: int,
    protocol: str,
    settings: Eval = _DEFAULTS,
    normalization: Normalization = IMAGENET,
    label_map: np.ndarray | None = None,
    reference: Sequence[tuple[str, bytes | None]] | None = None,
    pictures: int = 0,
    origin: str = "",
    done: Callable[[int], Any] = lambda images: None,
) -> Tally:
    """Count `model`'s predictions on `rows` against their annotations at the labels' own size.

    `label_map` (model classes,) gives each model class its class of the data set; `reference` holds (id, class
    map as PNG) of the same rows in the same order; the first `pictures` predictions are kept. Raises DataError for
    a broken row, named after `origin`, unless settings say to skip it, and for a reference of other images.
    """
    device = next(model.parameters()).device
    to_data = None if label_map is None else torch.from_numpy(label_map).to(device)

    def beside(index: int, row: dict, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        label = decode_annotation(row["annotation"], name)
        if label.ndim != 2:
            raise DataError(f"{name} has a label of {label.shape[2]} channels: it must have one class id a pixel")
        if label.shape != (row["height"], row["width"]):
            sizes = f"{label.shape[1]}x{label.shape[0]} for an image of {row['width']}x{row['height']}"
            raise DataError(f"{name} has a label of {sizes}: they must be of one size")
        bad = label[(label >= num_classes) & (label != IGNORE)]
        if bad.size:
            raise DataError(f"{name} has class id {bad[0]} in its label, but there are {num_classes} classes")
        return torch.from_numpy(label), None if reference is None else _wanted(reference, index, row)

    found = Tally(metric.new_confusion(num_classes, device))
    same = torch.zeros((), dtype=torch.int64, device=device)
    for one in predict(model, rows, protocol, settings, normalization, beside, origin):
        done(1)
        if one.error:
            found.skipped.append(str(one.error))
            continue
        label, wanted = one.beside
        if wanted is not None:
            same += (wanted.to(device) == one.classes).sum()
            found.pixels += wanted.numel()
        mapped = one.classes if to_data is None else to_data[one.classes.long()]
        own = metric.update(found.confusion, mapped, label.to(device))
        found.images.append((one.row["id"], metric.cells(own)))
        if one.index < pictures:
            found.pictures[one.row["id"]] = mapped.cpu().numpy()
    found.same = int(same)
    return found


def summary(tallies: Iterable[Tally]) -> Evaluation:
    """What the tallies of all parts come to. Raises DataError when they hold no image or no labelled pixel."""
    whole = None
    for one in tallies:
        if whole is None:
            whole = one
            continue
        whole.confusion += one.confusion
        whole.same, whole.pixels = whole.same + one.same, whole.pixels + one.pixels
        whole.images += one.images
        whole.pictures |= one.pictures
        whole.skipped += one.skipped
    if whole is None or not whole.images:
        raise DataError("there are no images to evaluate")
    if not whole.confusion.any():
        raise DataError("there is no labelled pixel to evaluate on: every one is to be ignored")
    agreement = whole.same / whole.pixels if whole.pixels else None
    return Evaluation(metric.compute(whole.confusion), agreement, whole.images, whole.pictures, whole.skipped)


def _wanted(reference: Sequence[tuple[str, bytes | None]], index: int, row: dict) -> torch.Tensor:
    name, data = reference[index] if index < len(reference) else ("nothing", None)
    if name != row["id"]:
        raise SegquantError(f"the reference has {name} where the shards have {row['id']}: make it again")
    if data is None:
        raise SegquantError(f"the reference was made without {name}: it could not be read then")
    wanted = decode_annotation(data, f"the reference of {name}")
    if wanted.shape != (row["height"], row["width"]):
        raise SegquantError(f"the reference of {name} is of another size: make it again")
    return torch.from_numpy(wanted)
