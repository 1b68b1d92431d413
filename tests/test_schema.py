"""params.schema.json, by which editors check params.yaml."""

import copy
import json

import pytest
import yaml
from conftest import ROOT

from segquant.base.schema import schema

SCHEMA = json.loads((ROOT / "params.schema.json").read_text())
NOTES = {"$schema", "$defs", "title", "description", "default"}  # keywords that check nothing
TYPES = {"null": type(None), "boolean": bool, "string": str, "object": dict, "array": list}


def fits(rule, value):
    """Whether `value` passes the JSON Schema `rule`. Raises KeyError for a keyword that it does not know."""
    return all(CHECKS[word](rule[word], value, rule) for word in rule.keys() - NOTES)


def has_type(name, value):
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[name])


def properties_fit(rules, value, _):
    return all(fits(rules[key], entry) for key, entry in value.items() if key in rules)


def others_fit(rule, value, parent):
    others = {key: entry for key, entry in value.items() if key not in parent.get("properties", {})}
    return not others if rule is False else all(fits(rule, entry) for entry in others.values())


CHECKS = {
    "$ref": lambda ref, value, _: fits(SCHEMA["$defs"][ref.removeprefix("#/$defs/")], value),
    "anyOf": lambda rules, value, _: any(fits(rule, value) for rule in rules),
    "oneOf": lambda rules, value, _: sum(fits(rule, value) for rule in rules) == 1,
    "type": lambda name, value, _: has_type(name, value),
    "const": lambda constant, value, _: value == constant,
    "enum": lambda choices, value, _: value in choices,
    "minimum": lambda low, value, _: not has_type("number", value) or value >= low,
    "maximum": lambda high, value, _: not has_type("number", value) or value <= high,
    "minItems": lambda length, value, _: not isinstance(value, list) or len(value) >= length,
    "maxItems": lambda length, value, _: not isinstance(value, list) or len(value) <= length,
    "minProperties": lambda length, value, _: not isinstance(value, dict) or len(value) >= length,
    "items": lambda rule, value, _: not isinstance(value, list) or all(fits(rule, entry) for entry in value),
    "required": lambda keys, value, _: not isinstance(value, dict) or set(keys) <= value.keys(),
    "properties": lambda rules, value, _: not isinstance(value, dict) or properties_fit(rules, value, _),
    "additionalProperties": lambda rule, value, parent: not isinstance(value, dict) or others_fit(rule, value, parent),
}


@pytest.fixture
def tree():
    return yaml.safe_load((ROOT / "params.yaml").read_text())


def test_the_committed_schema_is_current():
    assert schema() == SCHEMA, "run `python -m segquant.base.schema > params.schema.json`"


def test_params_yaml_names_the_schema_and_passes_it(tree):
    first = (ROOT / "params.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=params.schema.json"
    assert fits(SCHEMA, tree)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("modle",), {}),
        (("eval", "batch_sise"), 4),
        (("eval", "batch_size"), "4"),
        (("eval", "batch_size"), True),
        (("eval", "batch_size"), 0),
        (("eval", "device"), "gpu"),
        (("speed", "input_size"), [512]),
        (("train", "phases", 0, "crop"), 8),
        (("quant", "methods"), {}),
        (("quant", "methods", "int4", "grup_size"), 8),
        (("quant", "methods", "int4", "weights"), "int5"),
        (("quant", "methods", "int4", "layers"), "head"),
        (("quant", "methods", "int4", "overrides"), {"*": {"bits": 8}}),
        (("quant", "methods", "int8_static", "engine"), "tflite"),
        (("quant", "methods", "int8_static_qat", "train", "steps"), 4),
    ],
)
def test_a_mistake_fails_the_schema(tree, path, value):
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert not fits(SCHEMA, tree)


def test_the_schema_describes_the_keys_of_a_method():
    recipe, auto, graph = SCHEMA["$defs"]["Quant"]["properties"]["methods"]["additionalProperties"]["oneOf"]
    assert [kind["$ref"] for kind in (recipe, auto, graph)] == [
        f"#/$defs/{name}" for name in ("Recipe", "Auto", "Graph")
    ]
    assert "one scale for each row" in SCHEMA["$defs"]["Recipe"]["properties"]["group_size"]["description"]
    assert "engine" in SCHEMA["$defs"]["Graph"]["required"]
