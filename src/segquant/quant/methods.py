"""What each recipe does to a model: one registry from (weights, activations) to torchao's configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torchao.quantization as ao
from torch import nn

from segquant.config import Recipe
from segquant.errors import ConfigError, UnavailableError
from segquant.quant.coverage import dense_convs, rewrite

CASTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BITS = {"float32": 32, "bfloat16": 16, "float8": 8, "int8": 8, "int4": 4, "int3": 3, "int2": 2}


def _granularity(recipe: Recipe):
    return ao.PerGroup(recipe.group_size) if recipe.group_size else ao.PerAxis(0)


def _algorithm(recipe: Recipe) -> str:
    return {"hqq": "hqq_scale_only", "affine": "affine"}[recipe.algorithm]


def _intx(recipe: Recipe):
    return ao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, recipe.weights),
        granularity=_granularity(recipe),
        intx_choose_qparams_algorithm=_algorithm(recipe),
    )


def _intx_dynamic(recipe: Recipe):
    return ao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=getattr(torch, recipe.weights),
        weight_granularity=_granularity(recipe),
        intx_choose_qparams_algorithm=_algorithm(recipe),
    )


def _per_row(make: Callable) -> Callable:
    def config(recipe: Recipe):
        if recipe.group_size or recipe.algorithm != "affine":
            raise ConfigError(f"{recipe.weights} weights have one scale a row: leave group_size and algorithm out")
        return make()

    return config


# (weights, activations) -> recipe -> torchao configuration
CONFIGS: dict[tuple[str, str | None], Callable] = {
    ("float8", None): _per_row(lambda: ao.Float8WeightOnlyConfig(granularity=ao.PerRow())),
    ("float8", "float8"): _per_row(lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())),
    ("int8", None): _per_row(ao.Int8WeightOnlyConfig),
    ("int8", "int8"): _per_row(ao.Int8DynamicActivationInt8WeightConfig),
    **{(weights, None): _intx for weights in ("int4", "int3", "int2")},
    **{(weights, "int8"): _intx_dynamic for weights in ("int4", "int3", "int2")},
}


def describe(recipe: Recipe) -> str:
    """The recipe in words, for tables."""
    if recipe.weights in CASTS:
        return f"all weights and activations {recipe.weights}"
    group = f"groups of {recipe.group_size}" if recipe.group_size else "one scale a row"
    activations = (
        f"{recipe.activations} activations, quantized as they come" if recipe.activations else "float32 activations"
    )
    layers = "Linear layers and dense convolutions" if recipe.layers == "all" else "Linear layers"
    return f"{recipe.weights} weights of {layers} ({recipe.algorithm}, {group}), {activations}"


def unavailable(recipe: Recipe, device: torch.device) -> str | None:
    """Why `recipe` cannot run on `device`, or None when it can."""
    if recipe.weights == "float8" and recipe.activations == "float8":
        if device.type != "cuda":
            return "float8 activations need a CUDA device of capability 8.9 or higher; this run is on the CPU"
        if torch.cuda.get_device_capability(device) < (8, 9):
            return f"float8 activations need CUDA capability 8.9; {torch.cuda.get_device_name(device)} has less"
    return None


def quantize(model: nn.Module, recipe: Recipe, device: torch.device) -> list[str]:
    """Quantize `model` in place and move it to `device`; give back the names of the quantized modules.

    Raises UnavailableError for a recipe that `device` cannot run, ConfigError for one that does not
    exist or fits no layer.
    """
    reason = unavailable(recipe, device)
    if reason:
        raise UnavailableError(reason)
    model.to(device)
    if recipe.weights in CASTS:
        if recipe != Recipe(recipe.weights):
            raise ConfigError(f"{recipe.weights} is a plain cast: leave the other keys out")
        model.to(CASTS[recipe.weights])
        return []
    make = CONFIGS.get((recipe.weights, recipe.activations))
    if make is None:
        known = ", ".join(f"{w}+{a}" if a else w for w, a in CONFIGS)
        raise ConfigError(
            f"no method has {recipe.weights} weights with {recipe.activations} activations: there are {known}"
        )
    if recipe.layers == "all":
        rewrite(model, dense_convs(model))
    groups = {name: m.in_features for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if recipe.group_size:
        if not any(n % recipe.group_size == 0 for n in groups.values()):
            raise ConfigError(f"group_size {recipe.group_size} divides the inputs of no layer: choose 8, 16 or 32")
        groups = {name: _fitting(n, recipe.group_size) for name, n in groups.items()}
    for size in sorted(set(groups.values())):
        chosen = {name for name, group in groups.items() if group == size}
        config = make(replace(recipe, group_size=size) if recipe.group_size else recipe)
        ao.quantize_(model, config, filter_fn=lambda module, name, chosen=chosen: name in chosen)
    done = [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and is_quantized(m.weight)]
    if not done:
        raise ConfigError("the recipe quantized no layer: torchao skipped them all")
    return done


def _fitting(inputs: int, group_size: int) -> int:
    """The largest group, up to `group_size`, that divides a layer's inputs; all of them where that is tiny."""
    best = max(n for n in range(1, group_size + 1) if inputs % n == 0)
    return best if best >= min(4, group_size) else inputs


def is_quantized(weight: torch.Tensor) -> bool:
    return hasattr(weight, "qdata")
