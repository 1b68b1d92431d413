"""Match a model's classes with a data set's: by name, or by a label map where the two name things differently."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from segquant.base.config import BY_POSITION
from segquant.base.errors import DataError, one_line, system_reason
from segquant.base.yaml_file import read_yaml

log = logging.getLogger(__name__)
NO_CLASS = 255
_NAMELESS = re.compile(r"LABEL_\d+")  # what transformers calls the classes of a model that names none
_REMEDY = (
    "give data.label_map (--label-map), a YAML file `map: {model id: data set id}` like "
    "data/label_maps/cityscapes_to_camvid.yaml"
)


def class_names(config: Any) -> list[str]:
    """The names of a model's classes in the order of their ids, as its config says."""
    names = getattr(config, "id2label", None) or {}
    return [str(names.get(i, f"LABEL_{i}")) for i in range(config.num_labels)]


def nameless(classes: Sequence[str]) -> bool:
    """Whether these are only the names that transformers makes up."""
    return all(map(_NAMELESS.fullmatch, classes))


def same_classes(classes: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists name the same classes in the same order; one without names fits any of its length."""
    if nameless(classes) or nameless(others):
        return len(classes) == len(others)
    return len(classes) == len(others) and _places(classes, others) == list(range(len(classes)))


def match_classes(
    model_classes: Sequence[str], data_classes: Sequence[str], label_map: str | Path | None = None
) -> np.ndarray | None:
    """A lookup table uint8 (model classes,) from the model's class ids to the data set's; None where they are the same.

    `label_map` is a YAML file `map: {model id: data set id}`, in which `null` marks a class without a counterpart: its
    pixels count as wrong wherever there is a label. `by_position` says that equally many classes of other names are
    the same. Without either, the same names in another order are mapped by name, and classes without names are taken
    by position, with a warning. Raises DataError for other names or numbers of classes, and for a file that lacks an id
    or has one out of range.
    """
    if label_map not in (None, BY_POSITION):
        return _read(Path(label_map), len(model_classes), len(data_classes))
    if len(model_classes) != len(data_classes):
        counts = f"the model has {len(model_classes)} classes but the data set has {len(data_classes)}"
        raise DataError(f"{counts}: {_REMEDY}")
    if label_map == BY_POSITION:
        return None
    if same_classes(model_classes, data_classes):
        if list(model_classes) != list(data_classes) and (nameless(model_classes) or nameless(data_classes)):
            _warn_nameless("model" if nameless(model_classes) else "data set", len(model_classes))
        return None
    places = _places(model_classes, data_classes)
    if None not in places and len(set(places)) == len(places):
        log.info("the model has the data set's %d classes in another order: mapped by name", len(data_classes))
        return np.array(places, np.uint8)
    differing = next((i for i, place in enumerate(places) if place is None), None)
    if differing is None:
        differing = next(i for i, place in enumerate(places) if place != i)
    first, second = model_classes[differing], data_classes[differing]
    raise DataError(
        f"class {differing} is '{first}' in the model but '{second}' in the data set: {_REMEDY}, or `{BY_POSITION}` "
        "if equal numbers mean the same class"
    )


@cache  # once in a process: each method of a run is matched
def _warn_nameless(which: str, count: int) -> None:
    log.warning(
        "the %d classes of the %s have no names: equal class ids are taken for the same class. If they are not, %s; if "
        "they are, `%s` says so",
        count,
        which,
        _REMEDY,
        BY_POSITION,
    )


def _places(classes: Sequence[str], others: Sequence[str]) -> list[int | None]:
    """Where each of `classes` stands in `others`: by its name as it is written, else by the whole name without case
    and hyphens where no two differ in these alone, else where one of the two is the other's first synonym (`building,
    edifice`) and no second class begins like this."""
    written = {name: i for i, name in enumerate(others)}
    twice = {plain for names in (classes, others) for plain, n in Counter(map(_plain, names)).items() if n > 1}
    wholes = {plain: i for i, name in enumerate(others) if (plain := _plain(name)) not in twice}
    firsts = {_first(name): i for i, name in enumerate(others)}
    other_counts, counts = (Counter(map(_first, names)) for names in (others, classes))
    places = []
    for name in classes:
        place = written.get(name, wholes.get(_plain(name)))
        if place is None and counts[_first(name)] == 1:
            place = wholes.get(_first(name))
        if place is None and other_counts[_plain(name)] == 1:
            place = firsts[_plain(name)]
        places.append(place)
    return places


def _plain(name: str) -> str:
    """A class name as it is compared: without case, hyphens, surplus space and several ways to write `ü`."""
    name = unicodedata.normalize("NFC", name)
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())


def _first(name: str) -> str:
    return _plain(re.split(r"[,;]", name)[0])


def _whole(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):
        raise DataError(f"has the text '{value}' for a class id: write {value} without quotes")
    if type(value) is not int:
        raise TypeError(f"{value!r} is no class id")
    return value


def _read(path: Path, model_classes: int, data_classes: int) -> np.ndarray:
    try:
        entries = read_yaml(path)["map"]
        ids = {_whole(k): NO_CLASS if v is None else _whole(v) for k, v in entries.items()}
    except DataError as error:
        raise DataError(f"label map {path} {error}") from error
    except FileNotFoundError as error:
        raise DataError(f"label map {path} does not exist") from error
    except OSError as error:
        raise DataError(f"label map {path} cannot be read: {system_reason(error)}") from error
    except yaml.YAMLError as error:
        raise DataError(f"label map {path} is not valid YAML: {one_line(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"label map {path} is not a YAML file with `map: {{model id: data set id}}`") from error
    known = set(range(model_classes))
    problems = {
        "lacks model class": known - ids.keys(),
        "names an unknown model class": ids.keys() - known,
        "maps to an unknown data set class": set(ids.values()) - {NO_CLASS, *range(data_classes)},
    }
    for problem, classes in problems.items():
        if classes:
            raise DataError(
                f"label map {path} {problem} {min(classes)}: the model has {model_classes} classes, the data set "
                f"{data_classes}"
            )
    return np.array([ids[i] for i in range(model_classes)], np.uint8)
