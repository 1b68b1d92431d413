"""List every method and whether this machine can run it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from segquant.base import config


def options(parser: argparse.ArgumentParser) -> None:
    """No options but the shared ones."""


def main(arguments: argparse.Namespace) -> None:
    methods = _described(config.load(arguments.params))
    if arguments.json:
        print(json.dumps(methods, indent=2))
        return
    for name, method in methods.items():
        reason = f" [unavailable: {method['unavailable']}]" if method["unavailable"] else ""
        print(f"{name:15} {method['description']}{reason}")


def _described(params: config.Params) -> dict[str, dict[str, Any]]:
    """{method: its description, and the reason why it is unavailable here or None}."""
    from segquant import models
    from segquant.deploy import describe as graphs
    from segquant.engines import extras
    from segquant.quant import recipes

    device = models.device(params.eval.device)
    methods = {}
    for name, recipe in params.quant.methods.items():
        if isinstance(recipe, config.Graph):
            description, reason = graphs.describe(recipe), extras.unavailable(recipe)
        else:
            description, reason = recipes.describe(recipe), recipes.unavailable(recipe, device)
        methods[name] = {"description": description, "unavailable": reason}
    return methods
