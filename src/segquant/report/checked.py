"""A method's files, which an editor or a merge may have changed, held against the form that segquant gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from segquant.base.errors import SegquantError
from segquant.base.files import csv_rows, read_json

_Share = Annotated[float, Field(ge=0, le=1)]
_Positive = Annotated[float, Field(gt=0)]
_Count = Annotated[int, Field(ge=1)]
_CHECKS = ConfigDict(strict=True, allow_inf_nan=False)


class _Missing(TypedDict):
    __pydantic_config__ = _CHECKS
    unavailable: NotRequired[str]
    failed: NotRequired[str]


class _Accuracy(TypedDict):
    __pydantic_config__ = _CHECKS
    algorithm: NotRequired[str]
    engine: NotRequired[str]
    mean_iou: _Share
    mean_accuracy: NotRequired[_Share]
    overall_accuracy: NotRequired[_Share]
    agreement: NotRequired[_Share]
    n_images: _Count
    protocol: str
    size_bytes: Annotated[int, Field(ge=1, le=10**15)]
    compression: _Positive
    quantized_fraction: NotRequired[_Share]
    bits_per_parameter: NotRequired[_Positive]
    dtype: NotRequired[str]
    compile: NotRequired[bool]
    skipped: NotRequired[list[str]]


class _Quantize(TypedDict):
    __pydantic_config__ = _CHECKS
    seconds: Annotated[float, Field(ge=0)]
    calibration_images: NotRequired[int]
    taken_from: NotRequired[str]


class _Ratio(TypedDict):
    __pydantic_config__ = _CHECKS
    median: _Positive
    min: _Positive
    max: _Positive


class _Latency(TypedDict):
    __pydantic_config__ = _CHECKS
    p50: _Positive
    p90: _Positive
    n: _Count


class _Lane(TypedDict):
    __pydantic_config__ = _CHECKS
    engine: str
    batch_size: _Count
    latency_ms: NotRequired[_Latency]
    images_per_second: NotRequired[_Positive]
    relative_to_float32: NotRequired[_Ratio]
    relative_to_eager: NotRequired[_Ratio]


class _Speed(TypedDict):
    __pydantic_config__ = _CHECKS
    engine: str
    engine_version: str
    device: str
    threads: _Count
    batch_size: _Count
    input_size: Annotated[list[_Count], Field(min_length=2, max_length=2)]
    latency_ms: _Latency
    images_per_second: NotRequired[_Positive]
    relative_to_float32: NotRequired[_Ratio]
    relative_to_eager: NotRequired[_Ratio]
    peak_memory_bytes: NotRequired[float]
    load_seconds: NotRequired[float]
    lanes: NotRequired[list[_Lane]]


class _Hardware(TypedDict):
    __pydantic_config__ = _CHECKS
    processor: str | None
    instructions: list[str]
    cores: int | None
    gpu: str | None
    memory_gb: NotRequired[float]


_FORMS = {
    "accuracy": TypeAdapter(_Accuracy),
    "quantize": TypeAdapter(_Quantize),
    "speed": TypeAdapter(_Speed),
    "hardware": TypeAdapter(_Hardware),
}
_REASON = TypeAdapter(_Missing)


def checked(kind: str, content: Any, where: str) -> dict[str, Any]:
    """The `content` of a method's JSON file of a kind (accuracy, quantize or speed), or of hardware.json, at `where`.

    It may be the reason of a method without figures (`failures.missing`). Raises SegquantError for any other form.
    """
    form = _REASON if isinstance(content, dict) and _Missing.__annotations__.keys() & content else _FORMS[kind]
    try:
        form.validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise _wrong(where, f"{key + ': ' if key else ''}{first['msg']}") from error
    return content


def read_hardware(metrics: str | Path) -> dict[str, Any]:
    """hardware.json of a metrics folder. Raises SegquantError where it is not as segquant writes it."""
    path = Path(metrics) / "hardware.json"
    return checked("hardware", read_json(path), str(path))


def checked_rows(text: str, columns: Sequence[str], where: str) -> list[dict[str, str]]:
    """The rows of a CSV that stands at `where`. Raises SegquantError where one lacks any of `columns`."""
    rows = list(csv_rows(text))
    for row in rows:
        for column in columns:
            if not row.get(column):
                raise _wrong(where, f"a row has no {column}")
    return rows


def _wrong(where: str, reason: str) -> SegquantError:
    return SegquantError(f"{where} is not as segquant writes it ({reason}): restore it from Git, or run `dvc repro`")
