"""Graph recipes in words, for tables."""

from __future__ import annotations

import importlib

from segquant.base.config import Graph, Packed

_ROUTES = {"pt2e": "PyTorch 2 export", "qdq": "ONNX Runtime's quantizer", "nncf": "NNCF"}


def describe(recipe: Graph) -> str:
    """Describe a graph recipe in words. Digests in committed artifacts depend on this text: do not change it."""
    engine = importlib.import_module(f"segquant.engines.{recipe.engine}").NAME
    part = "computed" if recipe.algorithm == "cast" else "the rest"
    compute = f", {part} in {recipe.compute}" if recipe.compute != "float32" else ""
    if recipe.algorithm == "cast":
        return f"the {recipe.weights} graph on {engine}{compute}"
    exceptions = f", but for {', '.join(recipe.ignored_types)}" if recipe.ignored_types else ""
    search = f", losing at most {recipe.max_drop} points" if recipe.max_drop is not None else ""
    return (
        f"int8 weights and activations of the graph on {engine} ({_ROUTES[recipe.algorithm]}{exceptions}, ranges "
        f"from {recipe.calibration_images} images{search}{_training(recipe)}){compute}"
    )


def describe_packed(recipe: Packed) -> str:
    """Describe a packed recipe in words. Digests in committed artifacts depend on this text: do not change it."""
    engine = importlib.import_module(f"segquant.engines.{recipe.engine}").NAME
    if recipe.activations:
        return (
            f"the codes of {recipe.source} as a graph on {engine} that computes in int8 ({_ROUTES[recipe.algorithm]}, "
            f"ranges from {recipe.calibration_images} images{_training(recipe)})"
        )
    return f"the codes of {recipe.source} as a graph on {engine}, computed in {recipe.compute}"


def _training(recipe: Graph | Packed) -> str:
    if not recipe.train:
        return ""
    return f", then {recipe.train.epochs} epoch{'s' * (recipe.train.epochs > 1)} of training towards float32"
