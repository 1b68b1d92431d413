"""The JSON Schema of params.yaml: editors complete and check its keys by it.

`python -m segquant.base.schema > params.schema.json` writes it.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from segquant.base.config import Params


class _Generator(GenerateJsonSchema):
    schema_dialect = "http://json-schema.org/draft-07/schema#"  # the newest that editors' YAML servers support

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False  # the keys say it


def schema() -> dict[str, Any]:
    """The schema as a tree for json.dumps."""
    return {"$schema": _Generator.schema_dialect, **TypeAdapter(Params).json_schema(schema_generator=_Generator)}


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
