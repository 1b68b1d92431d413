"""Frozen dataclasses from YAML, checked by pydantic.

A mistake is a ConfigError of one line: the key's full path, what is allowed, and the given value.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs, InitErrorDetails, PydanticCustomError

from segquant.base.errors import ConfigError
from segquant.base.text import is_utf8

T = TypeVar("T")
# Types of our own errors. The line is "KEY must be MESSAGE, not VALUE" or "KEY MESSAGE".
MUST_BE = "must_be"
_PREDICATE = "predicate"


def _two(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) != 2:
        raise PydanticCustomError(MUST_BE, "a list of 2 values")
    return value


# Not strict: a list of YAML becomes a tuple. Its items are strict still.
Several = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]
Pair = Annotated[tuple[T, ...], Field(strict=False, min_length=2, max_length=2), BeforeValidator(_two)]


@dataclass(
    frozen=True,
    config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, validate_by_name=True, validate_by_alias=True),
)
class Section:
    """A mapping in params.yaml. Subclasses are `@dataclass(frozen=True)` of pydantic and inherit this configuration."""

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, value: Any, validate: Any) -> Any:
        names = [*_keys(cls).values()]
        if not isinstance(value, (cls, dict, ArgsKwargs)):
            raise PydanticCustomError(MUST_BE, f"a mapping of {', '.join(names)}")
        for key in value if isinstance(value, dict) else ():
            if key not in names:
                message = f"has an unknown key {shown(str(key))}: allowed are {', '.join(names)}"
                raise PydanticCustomError(_PREDICATE, message)
        try:
            return validate(value)
        except ValidationError as error:
            if isinstance(value, ArgsKwargs):  # the class was called, not built from a mapping
                raise ConfigError(_line(error, cls.__name__)) from error
            raise


def _keys(cls: type[Section]) -> dict[str, str]:
    """{field of a section: its key in params.yaml, which may be a word of Python's}."""
    return {name: field.alias or name for name, field in cls.__pydantic_fields__.items()}


def as_mapping(section: Section) -> dict[str, Any]:
    """The mapping that `build` makes this section of; its values are those of `asdict`."""
    keys = _keys(type(section))
    return {keys[name]: value for name, value in asdict(section).items()}


def build(cls: type[T], mapping: Any, name: str = "") -> T:
    """Make the dataclass `cls` from the mapping that stands at `name` in params.yaml ("": the whole file).

    Raises ConfigError in one line.
    """
    try:  # strict JSON takes a mapping for a dataclass; in strict Python only an instance would do
        text = json.dumps(mapping, default=str)
        _check_keys(mapping, name)
        return TypeAdapter(cls).validate_json(text)
    except ValidationError as error:
        raise ConfigError(_line(error, name)) from error
    except (TypeError, ValueError) as error:  # of json: a key that is a date, an alias of itself
        raise ConfigError(f"{name or 'params.yaml'} is not made of plain mappings and lists: {error}") from error


def _check_keys(value: Any, path: str) -> None:
    """Raise ConfigError for two keys of a mapping that JSON writes alike, such as 2 and "2": the last would win."""
    if isinstance(value, dict):
        keys: dict[str, Any] = {}
        for key, part in value.items():
            text = key if isinstance(key, str) else json.dumps(key)
            if text in keys:
                both = f"{shown(keys[text])} and {shown(key)}"
                raise ConfigError(f"{path or 'params.yaml'} has the keys {both}, which are the same: keep one")
            keys[text] = key
            _check_keys(text, f"a key of {path or 'params.yaml'}")
            _check_keys(part, f"{path}.{text}" if path else text)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _check_keys(part, f"{path}[{number}]")
    elif isinstance(value, str) and not is_utf8(value):
        raise ConfigError(f"{path} has half of a character, {shown(value)}: write the whole one")


def wrong(key: str, message: str) -> ValidationError:
    """A mistake in `key`, for a section's __post_init__ to raise; `message` follows the key's path in the line.

    A ValueError is about several keys of the section, and its message follows the section's path and a colon.
    """
    details = InitErrorDetails(type=PydanticCustomError(_PREDICATE, message), loc=(key,), input=None)
    return ValidationError.from_exception_data(key, [details])


def shown(value: Any) -> str:
    """A value as a message gives it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _line(error: ValidationError, name: str) -> str:
    """The first mistake, of a value that stands at `name`."""
    first = error.errors(include_url=False)[0]
    kind, loc, value, details = first["type"], first["loc"], first["input"], first.get("ctx", {})
    path = _path(name, loc)
    match kind:
        case "missing":
            return f"{_path(name, loc[:-1])} lacks the key '{loc[-1]}'"
        case "int_type" | "float_type" | "string_type" | "bool_type":
            return f"{path} must be of type {kind.removesuffix('_type')}, not {shown(value)}"
        case "finite_number":
            return f"{path} must be a finite number, not {shown(value)}"
        case "literal_error":
            choices = details["expected"].replace("'", "").replace(" or ", ", ")
            return f"{path} {shown(str(value))} is unknown: choose one of {choices}"
        case "greater_than_equal":
            return f"{path} must be at least {details['ge']:g}, not {shown(value)}"
        case "less_than_equal":
            return f"{path} must be at most {details['le']:g}, not {shown(value)}"
        case "tuple_type":
            return f"{path} must be a list, not {shown(value)}"
        case "dict_type":
            return f"{path} must be a mapping, not {shown(value)}"
        case "too_short":
            what = "mapping" if details["field_type"] == "Dictionary" else "list"
            return f"{path} must be a {what} with at least one entry, not {shown(value)}"
        case "value_error":
            return f"{path}: {details['error']}"
        case "must_be":
            return f"{path} must be {first['msg']}, not {shown(value)}"
        case "predicate":
            return f"{path} {first['msg']}"
    return f"{path}: {first['msg']}, not {shown(value)}"


def _path(name: str, loc: tuple[int | str, ...]) -> str:
    """`name` and the keys of `loc` as in quant.methods.int4 or train.phases[0]; tags of unions, such as <graph>, go."""
    path = name
    for key in loc:
        if isinstance(key, int):
            path += f"[{key}]"
        elif not key.startswith("<"):
            path += f".{key}" if path else key
    return path or "params.yaml"
