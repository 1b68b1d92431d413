"""Recipes of PyTorch methods in words."""

from __future__ import annotations

from segquant.base.config import Auto, Recipe
from segquant.quant.recipes import ranges
from segquant.quant.tensors import CASTS


def describe(recipe: Recipe | Auto) -> str:
    """The recipe in words, for tables. Names of trainings contain this text: a change retrains them."""
    if isinstance(recipe, Auto):
        return _auto(recipe)
    if recipe.weights in CASTS:
        return f"all weights and activations {recipe.weights}"
    group = f"groups of {recipe.group_size}" if recipe.group_size else "one scale a row"
    if small := recipe.small_layers:
        bits = f"{small.bits} bits in groups " if small.bits else ""
        group += f", {bits}of {small.group_size} in layers of up to {small.weights:,} weights"
    widths = [recipe.weights, *([f"int{small.bits}"] if small and small.bits else [])]
    stored = [ranges(recipe, weights) for weights in widths] if recipe.algorithm == "gptq" else []
    if known := next(filter(None, stored), None):
        group += f", with scales of {known.scale} and zeros of {known.zero} bits"
        group += "" if all(stored) else " below 8 bits"
    activations = (
        f"{recipe.activations} activations, quantized as they come" if recipe.activations else "float32 activations"
    )
    if recipe.activations == "float8":
        activations += ", products in bfloat16"
    layers = {"all": "all Linear and Conv2d layers", "linear": "Linear layers"}
    chosen = layers.get(recipe.layers) if isinstance(recipe.layers, str) else ", ".join(recipe.layers)
    but = "".join(f", {pattern} {o.weights or o.algorithm or 'otherwise'}" for pattern, o in recipe.overrides.items())
    return f"{recipe.weights} weights of {chosen} ({_fitting(recipe)}, {group}{but}), {activations}"


def _fitting(recipe: Recipe | Auto) -> str:
    """What finds the codes, in words."""
    images = f" on {recipe.calibration_images} images" if recipe.calibration_images else ""
    trained = ""
    if recipe.train:
        teacher = "on labels" if recipe.train.teacher == "none" else f"towards {recipe.train.teacher}"
        trained = f", then {recipe.train.steps} steps of training {teacher}"
    return f"{recipe.algorithm}{images}{trained}"


def _auto(recipe: Auto) -> str:
    budget = f"{recipe.points:g} points" if recipe.megabytes is None else f"{recipe.megabytes:g} MB"
    bits, groups = (", ".join(map(str, sorted(values))) for values in (recipe.bits, recipe.group_sizes))
    words = f"weights of each layer at one of {bits} bits, chosen for {budget}"
    return f"{words} ({_fitting(recipe)}, groups of one of {groups}), float32 activations"
