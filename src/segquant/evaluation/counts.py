"""Each image's confusion in a Parquet file: what intervals, matrices and figures of any subset are made from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segquant.base.errors import DataError
from segquant.base.files import replacing

_SCHEMA = pa.schema([("image", pa.string()), ("label", pa.uint8()), ("prediction", pa.uint8()), ("pixels", pa.int32())])
HEADER = "label,prediction,percent\n"  # of confusion.csv


@dataclass(frozen=True)
class Counts:
    """Entry i of `pixels` int64 (n,) counts the pixels of image `ids[image[i]]` with `label[i]` and `prediction[i]`.

    A prediction of `len(classes)` is of no class.
    """

    classes: list[str]
    protocol: str
    ids: list[str]
    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    pixels: np.ndarray

    def by_image(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels int64 (images, C) that are right, labelled and predicted."""
        shape = len(self.ids), len(self.classes) + 1
        right = self.label == self.prediction
        hit, labelled, predicted = (np.zeros(shape, np.int64) for _ in range(3))
        np.add.at(hit, (self.image[right], self.label[right]), self.pixels[right])
        np.add.at(labelled, (self.image, self.label), self.pixels)
        np.add.at(predicted, (self.image, self.prediction), self.pixels)
        return hit[:, :-1], labelled[:, :-1], predicted[:, :-1]

    def alike(self, other: Counts) -> bool:
        """Whether both are of the same images, labels, classes and protocol."""
        names = all(getattr(self, name) == getattr(other, name) for name in ("ids", "classes", "protocol"))
        return names and np.array_equal(self.by_image()[1], other.by_image()[1])

    def confusion(self) -> np.ndarray:
        """int64 (C, C + 1) over all images: rows are labels, columns predictions, the last one those of no class."""
        matrix = np.zeros((len(self.classes), len(self.classes) + 1), np.int64)
        np.add.at(matrix, (self.label, self.prediction), self.pixels)
        return matrix

    def confusion_csv(self) -> str:
        """A line for each label and prediction: its percentage of the label's pixels, where that is not 0.00."""
        matrix, names = self.confusion(), [*self.classes, "none of them"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        for label, row in enumerate(matrix):
            shares = [f"{100 * pixels / max(1, row.sum()):.2f}" for pixels in row]
            writer.writerows([names[label], names[i], share] for i, share in enumerate(shares) if share != "0.00")
        return HEADER + text.getvalue()


def write_counts(
    path: str | Path, images: Iterable[tuple[str, np.ndarray]], classes: Sequence[str], protocol: str
) -> None:
    """Write (id, `metric.cells`) of each image, sorted by id: a row an entry, classes and protocol as metadata."""
    images = sorted(images, key=lambda one: one[0])
    cells = np.concatenate([own for _, own in images])
    names = [name for name, own in images for _ in range(len(own))]
    table = pa.Table.from_arrays([names, *(pa.array(column) for column in cells.T)], [f.name for f in _SCHEMA])
    told = {"classes": json.dumps(list(classes)), "protocol": protocol, "images": json.dumps([n for n, _ in images])}
    with replacing(path) as part:
        pq.write_table(table.cast(_SCHEMA).replace_schema_metadata(told), part)


def read_counts(path: str | Path) -> Counts:
    """Raises DataError when there is no such file or it is another's."""
    try:
        table = pq.read_table(path)
        told = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        ids = json.loads(told["images"])
        at = {name: i for i, name in enumerate(ids)}
        columns = (table[name].to_numpy().astype(np.int64) for name in ("label", "prediction", "pixels"))
        image = np.array([at[name] for name in table["image"].to_pylist()], np.int64)
        return Counts(json.loads(told["classes"]), told["protocol"], ids, image, *columns)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path} holds no counts by image ({str(error).splitlines()[0]}): evaluate again") from error


def all_counts(metrics: str | Path) -> dict[str, Path]:
    """{method: the file of its counts} below `metrics`, a folder of dvc repro or of segquant run."""
    pipeline, run = Path(metrics) / "predictions", Path(metrics) / "confusion"
    there = {path.parent.name: path for path in sorted(pipeline.glob("*/confusion.parquet"))}
    return there | {path.stem: path for path in sorted(run.glob("*.parquet"))}


def locate_counts(metrics: str | Path, name: str) -> Path:
    """The file of a method's counts as `all_counts` has it; or `name` itself, a file.

    Raises DataError that lists the methods which have one.
    """
    if Path(name).is_file():
        return Path(name)
    there = all_counts(metrics)
    if name not in there:
        known = f"choose from {', '.join(sorted(there))}" if there else "run `dvc repro` or `segquant run` first"
        raise DataError(f"{metrics} has no counts by image of '{name}': {known}")
    return there[name]
