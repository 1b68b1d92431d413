"""Read YAML as people mean it: numbers as in YAML 1.2, no key twice, and nothing that grows as it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_CHARACTERS, _VALUES, _DEPTH = 1_000_000, 100_000, 30


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where 1e-3 is text, and lets the last of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *defaults`, whose keys may be written over
                continue
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.YAMLError(f"the key {key!r} stands twice, again in line {key_node.start_mark.line + 1}")
            keys.append(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+$"), list("+-0123456789")
)


def read_yaml(path: str | Path) -> Any:
    """Raises OSError, UnicodeDecodeError and yaml.YAMLError."""
    text = Path(path).read_text()
    if len(text) > _CHARACTERS:
        raise yaml.YAMLError(f"it has {len(text):,} characters: at most {_CHARACTERS:,} work")
    try:
        tree = yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    except (ValueError, TypeError, ArithmeticError, LookupError) as error:  # such as a month of 13
        raise yaml.YAMLError(f"a value cannot be read: {error}") from error
    _check_size(tree)
    return tree


def _check_size(tree: Any) -> None:
    """Raise YAMLError for a tree that a few aliases made deep or large, before anybody walks through it."""
    level, values = [tree], 0
    for _ in range(_DEPTH):
        values += len(level)
        parts = [value for value in level if isinstance(value, dict | list)]
        if not parts:
            return
        if values + sum(map(len, parts)) > _VALUES:
            break
        level = [child for part in parts for child in (part.values() if isinstance(part, dict) else part)]
    raise yaml.YAMLError(f"it has more than {_VALUES:,} values, or {_DEPTH} levels of them: write fewer")
