"""The images of the train split: what methods calibrate and train on, in the pipeline and in `segquant run`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from segquant import models
from segquant.base.config import Data, Method, Params
from segquant.base.errors import DataError
from segquant.data.calibration import calibration_batch, spread
from segquant.data.fingerprint import fingerprint
from segquant.data.label_map import class_names, match_classes, same_classes
from segquant.data.labels import NoClasses
from segquant.data.layouts import NoLayout
from segquant.data.preprocessing import read_preprocessing
from segquant.data.shards import ShardRows, read_manifest
from segquant.data.sources import image_digests, open_photos, open_source, readable
from segquant.quant.points import Points, agreement

if TYPE_CHECKING:  # imported where it is used: most methods only calibrate
    from segquant.training.material import Material

log = logging.getLogger(__name__)


class OtherClasses(DataError):
    """The train split's labels have other classes than those that are scored."""


@dataclass(frozen=True, eq=False)
class TrainSplit:
    """The images that methods calibrate and train on, and the validation rows that show how training goes.

    `rows` are as in shards, but their labels may be missing. `labelled` gives the rows with their labels, and the
    names of those labels' classes: it is called where labels are needed, and raises DataError and ConfigError.
    `identity` is JSON that says which rows they are. `validation` rows are labelled with `validation_classes`, which
    the file `label_map` takes the model's classes to. `learned` gathers the SHA-256 of each image that was asked for.
    """

    params: Params
    baseline: Path
    rows: Sequence[dict]
    labelled: Callable[[], tuple[Sequence[dict], Sequence[str]]]
    identity: Any
    validation: Sequence[dict]
    validation_classes: Sequence[str]
    label_map: str | None = None
    learned: set[bytes] = field(default_factory=set)

    @cached_property
    def _model_classes(self) -> list[str]:
        return class_names(models.load(self.baseline).config)

    @cached_property
    def _to_data(self) -> np.ndarray | None:
        return match_classes(self._model_classes, self.validation_classes, self.label_map)

    @cache
    def images(self, count: int) -> torch.Tensor:
        """Calibration inputs float32 (N, 3, H, W): `count` images, evenly spread; all where there are fewer."""
        if len(self.rows) < count:
            log.warning("calibration asks for %d images: it takes all %d of the train split", count, len(self.rows))
        return calibration_batch(
            self._spread(count, self.rows), self.params.protocol, read_preprocessing(self.baseline)
        )

    def points(self, count: int) -> Points:
        """Points of mIoU on `count` of the images, evenly spread.

        Raises OtherClasses where the labels' classes are not those that the label map is for.
        """
        return self._points(count, self._scored())

    @cache
    def points_or_agreement(self, count: int) -> Points:
        """`points`; where there are no labels of the classes that are scored, the agreement with the baseline."""
        try:
            labelled = self._scored()
        except (NoClasses, NoLayout, OtherClasses) as error:
            log.warning("%s. Points are percent of the logits' places whose class is not float32's here", error)
        else:
            return self._points(count, labelled)
        rows, preprocessing = list(self._spread(count, self.rows)), read_preprocessing(self.baseline)

        def inputs() -> Iterator[torch.Tensor]:
            for row in rows:
                yield calibration_batch([row], self.params.protocol, preprocessing)

        return agreement(models.load(self.baseline), inputs)

    def _scored(self) -> Sequence[dict]:
        """The rows with labels of the classes that are scored."""
        rows, classes = self.labelled()
        if list(classes) != list(self.validation_classes):
            raise OtherClasses(
                f"labels of the classes that are scored are needed, and {self.params.data.source} has others: give "
                "--train-data with the classes of --data"
            )
        return rows

    def _points(self, count: int, labelled: Sequence[dict]) -> Points:
        score = self._scorer(list(self._spread(count, labelled)))
        return Points(lambda model: 100 * score(model).scores.mean_iou, "mIoU")

    def material(self, validation_images: int, labelled: bool) -> Material:
        """What training works on, with labels or without; it is validated on the first `validation_images` of the
        validation rows.
        """
        from segquant.training.material import Material

        first = [self.validation[i] for i in range(min(len(self.validation), validation_images))]
        rows, classes = self.labelled() if labelled else (self.rows, ())
        as_labelled = labelled and self._is_labelled_by(classes)
        # Shards are read here, once: processes that draw crops then share the rows, or are sent them.
        if isinstance(rows, ShardRows):
            rows = list(rows)
        else:
            self.learned.update(self._digests)
        return Material(rows, classes, self.identity, self.params.protocol, self._scorer(first), as_labelled)

    def identity_of(self, recipe: Method) -> Any:
        """`identity`, and what a budget in points depends on besides: the classes that the model's are taken for."""
        if not getattr(recipe, "points", None):
            return self.identity
        return [self.identity, None if self._to_data is None else self._to_data.tolist()]

    def _is_labelled_by(self, classes: Sequence[str]) -> bool:
        """Whether labels of `classes` are the model's own, so that it can learn from them."""
        if list(classes) == list(self.validation_classes):
            return self._to_data is None
        return same_classes(self._model_classes, classes)

    @cached_property
    def _digests(self) -> set[bytes]:
        return set(image_digests(self.rows))

    def _spread(self, count: int, rows: Sequence[dict]) -> Iterator[dict]:
        for i in spread(len(rows), count):
            row = rows[i]
            self.learned.add(sha256(row["image"]).digest())
            yield row

    def _scorer(self, rows: Sequence[dict]) -> Callable[[nn.Module], Any]:
        from segquant.training.baseline import scorer

        preprocessing = read_preprocessing(self.baseline)
        return scorer(self.params, rows, self.validation_classes, preprocessing, self._to_data)


def split_of_shards(params: Params, baseline: str | Path, shards: str | Path) -> TrainSplit:
    """The train split of the pipeline's shards."""
    train, validation = (ShardRows(shards, name) for name in ("train", "validation"))
    manifest = read_manifest(shards)
    split, classes = manifest["splits"]["train"], manifest["classes"]
    # Scenes are drawn on the spot and may differ in a last bit between processors; their labels do not.
    content = split["class_pixels"] if params.data.source == "scenes" else split["content"]
    identity = [params.data.source, split["images"], content]
    label_map = params.data.label_map
    return TrainSplit(params, Path(baseline), train, lambda: (train, classes), identity, validation, classes, label_map)


def split_of_source(
    params: Params, baseline: str | Path, data: Data, split: str, scored: Any, label_map: str | None
) -> TrainSplit:
    """`split` of another source than shards, with or without labels; `scored` is the source that methods are scored on.

    Raises DataError where there is no such split.
    """
    on_error, params = params.eval.on_error, replace(params, data=data)
    photos = open_photos(data, split, on_error=on_error)

    @cache
    def labelled() -> tuple[Sequence[dict], Sequence[str]]:
        source = readable(open_source(data, split, on_error=on_error), on_error)
        return source, source.classes

    identity = [fingerprint(data), repr(data), split]
    return TrainSplit(params, Path(baseline), photos, labelled, identity, scored, scored.classes, label_map)
