"""The confusion of each image in a Parquet file: the source of intervals, matrices and figures of any subset."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segquant.base.errors import DataError, one_line
from segquant.base.files import csv_text, parse_json, replacing

_SCHEMA = pa.schema([("image", pa.string()), ("label", pa.uint8()), ("prediction", pa.uint8()), ("pixels", pa.int32())])
HEADER = ("label", "prediction", "percent")  # of confusion.csv


@dataclass(frozen=True)
class Counts:
    """The nonzero entries of each image's confusion, as four int64 arrays (n,).

    Image `ids[image[i]]` has `pixels[i]` pixels with label `label[i]` and prediction `prediction[i]`. The prediction
    `len(classes)` stands for all predictions of no class.
    """

    classes: list[str]
    protocol: str
    ids: list[str]
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    pixels: np.ndarray

    def by_image(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts int64 (images, C) of correct, labelled and predicted pixels."""
        shape = len(self.ids), len(self.classes) + 1
        correct = self.label == self.prediction
        hit, labelled, predicted = (np.zeros(shape, np.int64) for _ in range(3))
        np.add.at(hit, (self.image[correct], self.label[correct]), self.pixels[correct])
        np.add.at(labelled, (self.image, self.label), self.pixels)
        np.add.at(predicted, (self.image, self.prediction), self.pixels)
        return hit[:, :-1], labelled[:, :-1], predicted[:, :-1]

    def alike(self, other: Counts) -> bool:
        """Whether both have the same images, labels, classes and protocol."""
        same_names = all(getattr(self, name) == getattr(other, name) for name in ("ids", "classes", "protocol"))
        return same_names and np.array_equal(self.by_image()[1], other.by_image()[1])

    def confusion(self) -> np.ndarray:
        """int64 (C, C + 1) over all images: rows are labels, columns predictions, the last of which means no class."""
        matrix = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        np.add.at(matrix, (self.label, self.prediction), self.pixels)
        return matrix

    def confusion_csv(self) -> str:
        """A line for each label and prediction with its percentage of the label's pixels, omitted where it is 0.00."""
        matrix, names = self.confusion(), [*self.classes, "none of them"]
        rows = []
        for label, counts in enumerate(matrix):
            shares = [f"{100 * pixels / max(1, counts.sum()):.2f}" for pixels in counts]
            rows += [(names[label], names[i], share) for i, share in enumerate(shares) if share != "0.00"]
        return csv_text(rows, HEADER)


def write_counts(
    path: str | Path, images: Iterable[tuple[str, np.ndarray]], classes: Sequence[str], protocol: str
) -> None:
    """Write (id, `metric.cells`) of each image, sorted by id: one row per cell, classes and protocol as metadata."""
    images = sorted(images, key=lambda image: image[0])
    cells = np.concatenate([image_cells for _, image_cells in images])
    names = [name for name, image_cells in images for _ in range(len(image_cells))]
    table = pa.Table.from_arrays([names, *(pa.array(column) for column in cells.T)], [f.name for f in _SCHEMA])
    ids = [name for name, _ in images]
    metadata = {"classes": json.dumps(list(classes)), "protocol": protocol, "images": json.dumps(ids)}
    with replacing(path) as part:
        pq.write_table(table.cast(_SCHEMA).replace_schema_metadata(metadata), part)


def read_counts(path: str | Path) -> Counts:
    """Read a file of `write_counts`. Raises DataError when it is missing or is some other file."""
    try:
        with pq.ParquetFile(path) as file:  # pq.read_table imports pandas
            table = file.read()
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        ids = parse_json(metadata["images"])
        index = {name: i for i, name in enumerate(ids)}
        parts = (table[name].combine_chunks() for name in ("label", "prediction", "pixels"))
        columns = (np.from_dlpack(part).astype(np.int64) for part in parts)  # to_numpy imports pandas too
        image = np.array([index[name] for name in table["image"].to_pylist()], np.int64)
        return Counts(parse_json(metadata["classes"]), metadata["protocol"], ids, image, *columns)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: evaluate the method first") from error
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path} holds no counts by image ({one_line(error)}): evaluate again") from error


def all_counts(metrics: str | Path) -> dict[str, Path]:
    """Map each method to the file of its counts below `metrics`, a folder of `dvc repro` or `segquant run`."""
    pipeline, run = Path(metrics) / "predictions", Path(metrics) / "confusion"
    files = {path.parent.name: path for path in sorted(pipeline.glob("*/confusion.parquet"))}
    return files | {path.stem: path for path in sorted(run.glob("*.parquet"))}


def locate_counts(metrics: str | Path, name: str) -> Path:
    """The file of a method's counts below `metrics`, or `name` itself if it is a file.

    Raises DataError, which lists the methods that have counts.
    """
    if Path(name).is_file():
        return Path(name)
    files = all_counts(metrics)
    if name not in files:
        advice = f"choose from {', '.join(sorted(files))}" if files else "run `dvc repro` or `segquant run` first"
        if sets := sorted(str(folder) for folder in Path(metrics).glob("data/*/") if all_counts(folder)):
            advice = f"give --metrics one of its data sets, {', '.join(sets)}"
        raise DataError(f"{metrics} has no counts by image of '{name}': {advice}")
    return files[name]
