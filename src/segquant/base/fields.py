"""Dataclasses from mappings, with the type, the choices and the bounds of each field checked."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import field
from typing import Any

from segquant.base.errors import ConfigError

_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?e[+-]?\d+", re.I)


def choice(*names: str, **kw: Any) -> Any:
    return field(metadata={"choices": names}, **kw)


def at_least(low: float, **kw: Any) -> Any:
    return field(metadata={"low": low}, **kw)


def within(low: float, high: float, **kw: Any) -> Any:
    return field(metadata={"low": low, "high": high}, **kw)


def build(kind: type, tree: Any, where: str = "") -> Any:
    """Make the dataclass `kind` from the mapping that stands at `where` in params.yaml; ConfigError in one line."""
    name = where or "params.yaml"
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} must be a mapping of {_names(kind)}, not {tree!r}")
    known = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in known:
            raise ConfigError(f"{name} has an unknown key '{key}': allowed are {_names(kind)}")
    values = {}
    for key, spec in known.items():
        at = f"{where}.{key}" if where else key
        if key in tree:
            values[key] = _value(hints[key], tree[key], at, spec.metadata)
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{name} lacks the key '{key}'")
    try:
        return kind(**values)
    except ConfigError as error:  # of several keys together
        raise ConfigError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error


def _kind(kinds: list[type], value: Any) -> type:
    """Of several dataclasses the one whose first field is among the keys of `value`; else the first."""
    keys = value if isinstance(value, dict) else ()
    return next((kind for kind in reversed(kinds) if dataclasses.fields(kind)[0].name in keys), kinds[0])


def _names(kind: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(kind))


def _value(hint: Any, value: Any, at: str, metadata: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kinds = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(kinds) > 1 and all(map(dataclasses.is_dataclass, kinds)):
            return build(_kind(kinds, value), value, at)
        hint = next((k for k in kinds if isinstance(value, list) == (typing.get_origin(k) is tuple)), kinds[0])
        if isinstance(value, list) and typing.get_origin(hint) is tuple and len(kinds) > 1:
            metadata = {}  # the choices are those of a plain word
    if dataclasses.is_dataclass(hint):
        return build(hint, value, at)
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict) or not value:
            raise ConfigError(f"{at} must be a mapping with at least one entry, not {value!r}")
        return {str(k): _value(typing.get_args(hint)[1], v, f"{at}.{k}", {}) for k, v in value.items()}
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, list) or not value:
            raise ConfigError(f"{at} must be a list, not {value!r}")
        if parts[1] is Ellipsis:
            parts = parts[:1] * len(value)
        if len(value) != len(parts):
            raise ConfigError(f"{at} must be a list of {len(parts)} values, not {value!r}")
        return tuple(_value(p, v, f"{at}[{i}]", metadata) for i, (p, v) in enumerate(zip(parts, value)))
    return _scalar(hint, value, at, metadata)


def _scalar(hint: type, value: Any, at: str, metadata: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):  # YAML takes 1e-3 for text
        value = float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ConfigError(f"{at} must be of type {hint.__name__}, not {value!r}")
    if "choices" in metadata and value not in metadata["choices"]:
        raise ConfigError(f"{at} '{value}' is unknown: choose one of {', '.join(map(str, metadata['choices']))}")
    if "low" in metadata and not value >= metadata["low"]:
        raise ConfigError(f"{at} must be at least {metadata['low']}, not {value}")
    if "high" in metadata and not value <= metadata["high"]:
        raise ConfigError(f"{at} must be at most {metadata['high']}, not {value}")
    return value
