"""Map a model's class ids to a data set's class ids where the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from segquant.base.errors import DataError

NO_CLASS = 255


def load_label_map(path: str | Path | None, model_classes: int, data_classes: Sequence[str]) -> np.ndarray | None:
    """Read a YAML file `map: {model id: data set id}` as a lookup table, uint8 (model_classes,).

    A model class that maps to `null` has no counterpart: its pixels count as wrong wherever there is a label. Returns
    None when `path` is None and both have the same number of classes. Raises DataError when the numbers differ and
    `path` is None, or when the file lacks an id or has one out of range.
    """
    if path is None:
        if model_classes == len(data_classes):
            return None
        raise DataError(
            f"the model has {model_classes} classes but the data set has {len(data_classes)}: give data.label_map "
            "(--label-map), a YAML file `map: {model id: data set id}` like data/label_maps/cityscapes_to_camvid.yaml"
        )
    try:
        entries = yaml.safe_load(Path(path).read_text())["map"]
        ids = {int(k): NO_CLASS if v is None else int(v) for k, v in entries.items()}
    except FileNotFoundError as error:
        raise DataError(f"label map {path} does not exist") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"label map {path} is not a YAML file with `map: {{model id: data set id}}`") from error
    known = set(range(model_classes))
    problems = {
        "lacks model class": known - ids.keys(),
        "names an unknown model class": ids.keys() - known,
        "maps to an unknown data set class": set(ids.values()) - {NO_CLASS, *range(len(data_classes))},
    }
    for problem, classes in problems.items():
        if classes:
            raise DataError(
                f"label map {path} {problem} {min(classes)}: the model has {model_classes} classes, the data set "
                f"{len(data_classes)}"
            )
    return np.array([ids[i] for i in range(model_classes)], np.uint8)
