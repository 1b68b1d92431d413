"""Methods with an engine in words, for tables."""

from __future__ import annotations

import importlib

from segquant.base.config import Graph

_ROUTES = {"pt2e": "PyTorch 2 export", "qdq": "ONNX Runtime's quantizer", "nncf": "NNCF"}


def describe(recipe: Graph) -> str:
    """The recipe in words."""
    engine = importlib.import_module(f"segquant.engines.{recipe.engine}").NAME
    part = "computed" if recipe.algorithm == "cast" else "the rest"
    compute = f", {part} in {recipe.compute}" if recipe.compute != "float32" else ""
    if recipe.algorithm == "cast":
        return f"the {recipe.weights} graph on {engine}{compute}"
    but = f", but for {', '.join(recipe.ignored_types)}" if recipe.ignored_types else ""
    searched = f", losing at most {recipe.max_drop} points" if recipe.max_drop is not None else ""
    trained = ""
    if recipe.train:
        trained = f", then {recipe.train.epochs} epoch{'s' * (recipe.train.epochs > 1)} of training towards float32"
    return (
        f"int8 weights and activations of the graph on {engine} ({_ROUTES[recipe.algorithm]}{but}, ranges from "
        f"{recipe.calibration_images} images{searched}{trained}){compute}"
    )
