"""Methods with an engine in words, for tables."""

from __future__ import annotations

from segquant.config import Graph

_ROUTES = {"pt2e": "PyTorch 2 export", "qdq": "ONNX Runtime's quantizer", "nncf": "NNCF"}
_ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def describe(recipe: Graph) -> str:
    """The recipe in words."""
    engine = _ENGINES[recipe.engine]
    other = recipe.compute != "float32"
    if recipe.algorithm == "cast":
        return f"the {recipe.weights} graph on {engine}{f', computed in {recipe.compute}' if other else ''}"
    rest = f", the rest in {recipe.compute}" if other else ""
    but = f", but for {', '.join(recipe.ignored_types)}" if recipe.ignored_types else ""
    searched = f", losing at most {recipe.max_drop} points" if recipe.max_drop is not None else ""
    trained = ""
    if recipe.train:
        trained = f", then {recipe.train.epochs} epoch{'s' * (recipe.train.epochs > 1)} of training towards float32"
    return (
        f"int8 weights and activations of the graph on {engine} ({_ROUTES[recipe.algorithm]}{but}, ranges from "
        f"{recipe.calibration_images} images{searched}{trained}){rest}"
    )
