"""From a model's class ids to a data set's, where the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from segquant.base.errors import DataError

NO_CLASS = 255


def load_label_map(path: str | Path | None, model_classes: int, data_classes: Sequence[str]) -> np.ndarray | None:
    """A lookup table uint8 (model_classes,) from a YAML file `map: {model id: data set id}`.

    A model class of `null` has no counterpart: its pixels are wrong wherever they are labelled. None
    without a file, where both sides have the same number of classes. Raises DataError when an id
    is missing or out of range, or when there is no file and the numbers differ.
    """
    if path is None:
        if model_classes == len(data_classes):
            return None
        raise DataError(
            f"the model has {model_classes} classes but the data set has {len(data_classes)}: give data.label_map "
            "(--label-map), a YAML file with `map: {model id: data id}`, as data/label_maps/cityscapes_to_camvid.yaml"
        )
    try:
        entries = yaml.safe_load(Path(path).read_text())["map"]
        ids = {int(k): NO_CLASS if v is None else int(v) for k, v in entries.items()}
    except FileNotFoundError as error:
        raise DataError(f"label map {path} does not exist") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"label map {path} is not a YAML file with `map: {{model id: data set id}}`") from error
    missing = sorted(set(range(model_classes)) - ids.keys())
    extra = sorted(ids.keys() - set(range(model_classes)))
    outside = sorted(v for v in ids.values() if v != NO_CLASS and not 0 <= v < len(data_classes))
    for what, found in (
        ("lacks model class", missing),
        ("names an unknown model class", extra),
        ("maps to an unknown data set class", outside),
    ):
        if found:
            raise DataError(
                f"label map {path} {what} {found[0]} (model: {model_classes} classes, data set: {len(data_classes)})"
            )
    return np.array([ids[i] for i in range(model_classes)], np.uint8)
