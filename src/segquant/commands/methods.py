"""List every method and whether this machine can run it."""

from __future__ import annotations

import argparse
from typing import Any

from segquant.base import config
from segquant.base.text import say, say_json


def options(parser: argparse.ArgumentParser) -> None:
    """No options but the shared ones."""


def main(arguments: argparse.Namespace) -> None:
    methods = _described(config.load(arguments.params))
    if arguments.json:
        say_json(methods)
        return
    for name, method in methods.items():
        reason = f" [unavailable: {method['unavailable']}]" if method["unavailable"] else ""
        say(f"{name:15} {method['description']}{reason}")


def _described(params: config.Params) -> dict[str, dict[str, Any]]:
    """{method: its description, and the reason why it is unavailable here or None}."""
    from segquant import models
    from segquant.methods import kind

    device = models.device(params.eval.device)
    return {
        name: {
            "description": kind(recipe).describe(recipe),
            "unavailable": kind(recipe).unavailable(recipe, device),
        }
        for name, recipe in params.quant.recipes.items()
    }
