"""Read YAML as people mean it: numbers as in YAML 1.2, and no key twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


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
    return yaml.load(Path(path).read_text(), _Loader)
