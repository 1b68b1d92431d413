"""Score a model on labelled rows: the confusion matrix, and the share of pixels that agree with float32."""

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
from segquant.data.images import IGNORE, decode_annotation, strips
from segquant.data.preprocessing import IMAGENET, Preprocessing
from segquant.evaluation import metric
from segquant.evaluation.predict import predict

_DEFAULTS = Eval()
_FETCHED = 32  # images whose counts leave the device together, as a GPU is waited for


@dataclass
class Tally:
    """Counts over a part of the images, which `summary` adds up: `same` of `pixels` have the reference's class.

    `images` holds each image's id and `metric.cells`; `pictures` maps ids to class maps uint8 (H, W) in the data set's
    classes; `skipped` holds the error of each row that was skipped.
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
        with np.load(io.BytesIO(data)) as file:  # np.load refuses pickles by default
            pictures = {str(name): file[f"arr_{i}"] for i, name in enumerate(file["names"])}
            images = list(zip(file["ids"].tolist(), np.split(file["cells"], file["ends"][:-1])))
            counts = file["counts"].tolist()
            return cls(torch.from_numpy(file["confusion"]), *counts, images, pictures, file["skipped"].tolist())


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    `agreement` is the fraction of all pixels where the model's class (before the label map) is the reference's, or
    None without a reference. `images` holds each image's id and `metric.cells`; `pictures` maps the ids of the first
    images to class maps uint8 (H, W) in the data set's classes; `skipped` holds the error of each row that was skipped.
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
    """Evaluate on `rows` (as in shards) in this process; `total` is their number, and `options` go to `tally`."""
    with progress(total=total, desc=desc, unit="image") as bar:
        return summary([tally(model, rows, done=bar.update, **options)])


def tally(
    model: nn.Module,
    rows: Iterable[dict],
    *,
    num_classes: int,
    protocol: str,
    settings: Eval = _DEFAULTS,
    preprocessing: Preprocessing = IMAGENET,
    label_map: np.ndarray | None = None,
    reference: Sequence[tuple[str, bytes | None]] | None = None,
    pictures: int = 0,
    origin: str = "",
    done: Callable[[int], Any] = lambda images: None,
) -> Tally:
    """Compare the predictions of `model` on `rows` with their annotations, at the labels' original size.

    `label_map` (model classes,) maps each class of the model to one of the data set. `reference` holds (id, class map
    as PNG) of the same rows in the same order. The first `pictures` predictions are kept. `done` is called with the
    number of images finished since its last call. Raises DataError, which begins with `origin`, for a broken row
    unless the settings skip it, and SegquantError for a reference of other images.
    """
    device = next(model.parameters()).device
    to_data_class = None if label_map is None else torch.from_numpy(label_map).to(device)

    def targets(index: int, row: dict, name: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        label = row_label(row, name, num_classes)
        return label, None if reference is None else _reference_map(reference, index, row)

    result = Tally(metric.new_confusion(num_classes, device))
    same = torch.zeros((), dtype=torch.int64, device=device)
    names, confusions = [], []

    def fetch() -> None:
        result.images.extend(zip(names, metric.cells_of(confusions)))
        names.clear(), confusions.clear()

    for prediction in predict(model, rows, protocol, settings, preprocessing, targets, origin):
        done(1)
        if prediction.error:
            result.skipped.append(str(prediction.error))
            continue
        name, classes, (label, reference_map) = prediction.row["id"], prediction.classes, prediction.extra
        if reference_map is not None:
            same += (reference_map.to(device) == classes).sum()
            result.pixels += reference_map.numel()
        mapped = classes if to_data_class is None else metric.mapped(classes, to_data_class)
        names.append(name)
        confusions.append(metric.update(result.confusion, mapped, label.to(device)))
        if len(names) == _FETCHED:
            fetch()
        if prediction.index < pictures:
            result.pictures[name] = mapped.cpu().numpy()
    fetch()
    result.same = int(same)
    return result


def summary(tallies: Iterable[Tally]) -> Evaluation:
    """Add up the tallies of all parts. Raises DataError when they hold no image or no labelled pixel."""
    total = None
    for part in tallies:
        if total is None:
            total = part
            continue
        total.confusion += part.confusion
        total.same, total.pixels = total.same + part.same, total.pixels + part.pixels
        total.images += part.images
        total.pictures |= part.pictures
        total.skipped += part.skipped
    if total is None or not total.images:
        raise DataError("there are no images to evaluate: give a split with readable images")
    if not total.confusion.any():
        raise DataError(f"there is no labelled pixel to evaluate on: every label is {IGNORE}, which is ignored")
    agreement = total.same / total.pixels if total.pixels else None
    return Evaluation(metric.compute(total.confusion), agreement, total.images, total.pictures, total.skipped)


def row_label(row: dict, name: str, num_classes: int) -> torch.Tensor:
    """The label uint8 (H, W) of a row, of the image's size. Raises DataError with `name` for an id that is no class."""
    label = decode_annotation(row["annotation"], name)
    if label.ndim != 2:
        raise DataError(f"{name} has a label of {label.shape[2]} channels: give one class id per pixel")
    if label.shape != (row["height"], row["width"]):
        sizes = f"{label.shape[1]}x{label.shape[0]} for an image of {row['width']}x{row['height']}"
        raise DataError(f"{name} has a label of {sizes}: give a label of the image's size")
    for strip in strips(label):
        invalid = strip[(strip >= num_classes) & (strip != IGNORE)]
        if invalid.size:
            raise DataError(
                f"{name} has class id {invalid[0]} in its label, but there are {num_classes} classes: "
                f"use ids below {num_classes}, or {IGNORE} to ignore a pixel"
            )
    return torch.from_numpy(label)


def _reference_map(reference: Sequence[tuple[str, bytes | None]], index: int, row: dict) -> torch.Tensor:
    """The reference's class map uint8 (H, W) of a row. Raises SegquantError when it is missing or of another size."""
    name, png = reference[index] if index < len(reference) else ("nothing", None)
    if name != row["id"]:
        raise SegquantError(f"the reference has {name} where the shards have {row['id']}: remove it and run again")
    if png is None:
        raise SegquantError(f"the reference lacks {name}, which could not be read before: remove it and run again")
    classes = decode_annotation(png, f"the reference of {name}")
    if classes.shape != (row["height"], row["width"]):
        raise SegquantError(f"the reference of {name} has another size than its image: remove it and run again")
    return torch.from_numpy(classes)
