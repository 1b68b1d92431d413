"""Read YAML as people mean it: numbers as in YAML 1.2, no key twice, and nothing that grows as it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from segquant.base.files import read_file

_CHARACTERS, _VALUES, _DEPTH = 1_000_000, 100_000, 30


class _Loader(yaml.SafeLoader):
    """PyYAML follows YAML 1.1, where 1e-3 is text and 010 is eight, and lets the last of two equal keys win."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()  # ids of mappings, which live as long as this

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """The scanner looks 1,024 characters ahead, which takes a second and more where each opens a level."""
        if self.flow_level >= 10 * _DEPTH:
            raise yaml.YAMLError("it is nested too deep")
        super().fetch_flow_collection_start(token)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        self._check_keys(node)
        return super().construct_mapping(node, deep)

    def _check_keys(self, node: yaml.MappingNode) -> None:
        """Raise YAMLError for a key that stands twice, also in what `<<` merges; once, as merging changes the node."""
        if id(node) in self._checked:
            return
        self._checked.add(id(node))
        keys: list[Any] = []
        for key_node, value in node.value:
            merges = key_node.tag == "tag:yaml.org,2002:merge"  # `<<: *defaults`, whose keys may be written over
            key = "<<" if merges else self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.YAMLError(f"the key {key!r} stands twice, again in line {key_node.start_mark.line + 1}")
            keys.append(key)
            for merged in (value.value if isinstance(value, yaml.SequenceNode) else [value]) if merges else ():
                if isinstance(merged, yaml.MappingNode):
                    self._check_keys(merged)


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[1:2] in ("o", "x") else int(text)


# YAML 1.2, as DVC reads it: 010 is ten, and 1:30 and `yes` are text. (DVC also reads dates, of which there are none.)
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
_Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
# Without !!binary, !!set, !!timestamp and others, whose values would pass for text.
_CORE = ("null", "bool", "int", "float", "str", "seq", "map")
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in _Loader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _CORE
}


def read_yaml(path: str | Path) -> Any:
    """Raises OSError, also for what is no file, UnicodeDecodeError and yaml.YAMLError."""
    text = read_file(path, 4 * _CHARACTERS).decode()
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
