"""What each recipe does to a model: one registry from (weights, activations) to torchao's configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torchao.quantization as ao
from torch import nn
from torchao.quantization import IntxUnpackedToInt8Tensor

from segquant.base.config import Override, Recipe
from segquant.base.errors import ConfigError, UnavailableError
from segquant.base.ranks import from_first
from segquant.quant.calibrate import calibrate
from segquant.quant.coverage import choose, dense_convs, match, rewrite
from segquant.quant.fake import int8
from segquant.quant.float8 import compute_in_bfloat16, to_bfloat16
from segquant.quant.gptq import Codes
from segquant.quant.tensors import CASTS, as_float16, is_quantized

log = logging.getLogger(__name__)
BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}


Found = dict[str, tuple[Codes, torch.Tensor | None]]  # of each Linear, its codes and its bias
# (model, what calibration found, bits of each layer, convolutions with groups) -> what training made of it
Refine = Callable[[nn.Module, Found, Mapping[str, int], Sequence[str]], Found]


class Layer(NamedTuple):
    """How one layer's weights are quantized; group_size None is one scale a row."""

    weights: str
    group_size: int | None
    algorithm: str


def _granularity(layer: Layer):
    return ao.PerGroup(layer.group_size) if layer.group_size else ao.PerAxis(0)


def _algorithm(layer: Layer) -> str:
    return {"hqq": "hqq_scale_only", "affine": "affine"}[layer.algorithm]


def _intx(layer: Layer):
    return ao.IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, layer.weights),
        granularity=_granularity(layer),
        intx_choose_qparams_algorithm=_algorithm(layer),
    )


def _intx_dynamic(layer: Layer):
    return ao.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=getattr(torch, layer.weights),
        weight_granularity=_granularity(layer),
        intx_choose_qparams_algorithm=_algorithm(layer),
    )


def _per_row(make: Callable, otherwise: Callable | None = None) -> Callable:
    """torchao's own configuration where a row has one scale from its span, else `otherwise`."""

    def config(layer: Layer):
        if not layer.group_size and layer.algorithm == "affine":
            return make()
        if otherwise is None:
            raise ConfigError(f"{layer.weights} weights have one scale a row: leave group_size and algorithm out")
        return otherwise(layer)

    return config


# (weights, activations) -> Layer -> torchao configuration
CONFIGS: dict[tuple[str, str | None], Callable] = {
    ("float8", None): _per_row(lambda: ao.Float8WeightOnlyConfig(granularity=ao.PerRow())),
    ("float8", "float8"): _per_row(lambda: ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow())),
    ("int8", None): _per_row(ao.Int8WeightOnlyConfig, _intx),
    ("int8", "int8"): _per_row(ao.Int8DynamicActivationInt8WeightConfig, _intx_dynamic),
    **{(weights, None): _intx for weights in ("int4", "int3", "int2")},
    **{(weights, "int8"): _intx_dynamic for weights in ("int4", "int3", "int2")},
}


def describe(recipe: Recipe) -> str:
    """The recipe in words, for tables."""
    if recipe.weights in CASTS:
        return f"all weights and activations {recipe.weights}"
    group = f"groups of {recipe.group_size}" if recipe.group_size else "one scale a row"
    if small := recipe.small_layers:
        group += f", of {small.group_size} in layers of up to {small.weights:,} weights"
    activations = (
        f"{recipe.activations} activations, quantized as they come" if recipe.activations else "float32 activations"
    )
    if recipe.activations == "float8":
        activations += ", products in bfloat16"
    layers = {"all": "all Linear and Conv2d layers", "linear": "Linear layers"}
    chosen = layers.get(recipe.layers) if isinstance(recipe.layers, str) else ", ".join(recipe.layers)
    images = f" on {recipe.calibration_images} images" if recipe.calibration_images else ""
    but = "".join(f", {pattern} {o.weights or o.algorithm or 'otherwise'}" for pattern, o in recipe.overrides.items())
    trained = ""
    if recipe.train:
        teacher = "on labels" if recipe.train.teacher == "none" else f"towards {recipe.train.teacher}"
        trained = f", then {recipe.train.steps} steps of training {teacher}"
    return f"{recipe.weights} weights of {chosen} ({recipe.algorithm}{images}{trained}, {group}{but}), {activations}"


def unavailable(recipe: Recipe, device: torch.device) -> str | None:
    """Why `recipe` cannot run on `device`, or None when it can."""
    if recipe.activations == "float8":
        if device.type != "cuda":
            return "float8 activations need a CUDA device of capability 8.9 or higher; this run is on the CPU"
        if torch.cuda.get_device_capability(device) < (8, 9):
            return f"float8 activations need CUDA capability 8.9; {torch.cuda.get_device_name(device)} has less"
    return None


def quantize(
    model: nn.Module,
    recipe: Recipe,
    device: torch.device,
    images: torch.Tensor | None = None,
    refine: Refine | None = None,
) -> list[str]:
    """Quantize `model` in place and move it to `device`; give back the names of the quantized modules.

    `images` (N, 3, H, W) are model inputs to calibrate on, needed where recipe.calibration_images is not 0; `refine`
    trains what calibration found, needed where there is a recipe.train. Scales and what stays float are rounded to
    what float16 holds, as they are stored so. Raises UnavailableError for a recipe that `device` cannot run,
    ConfigError for one that does not exist or fits no layer.
    """
    todo = plan(model, recipe)
    reason = unavailable(recipe, device)
    if reason:
        raise UnavailableError(reason)
    model.to(device)
    if recipe.weights in CASTS:
        model.to(CASTS[recipe.weights])
        return []
    learned = {n: (BITS[one.weights], one.group_size) for n, one in todo.layers.items() if one.algorithm == "gptq"}
    if learned and images is None:
        raise ConfigError("algorithm gptq calibrates on images of the train split: there are none")
    if recipe.train and refine is None:
        raise ConfigError("the recipe trains: it needs images to train on")
    rewrite(model, todo.dense)

    def calibrated() -> Found:
        return _on(torch.device("cpu"), calibrate(model, learned, images.to(device)))

    if learned:
        found = from_first(calibrated) if recipe.train else calibrated()  # ranks train together, from one start
        found = _on(device, found)
        if recipe.train:
            found = refine(model, found, {name: bits for name, (bits, _) in learned.items()}, todo.convs)
        _set(model, found, learned, recipe.activations)
    for layer, config in sorted(todo.configs.items(), key=str):
        if config is not None:
            chosen = {name for name, one in todo.layers.items() if one == layer}
            if recipe.activations == "float8":
                to_bfloat16(model, chosen)
            ao.quantize_(model, config, filter_fn=lambda _module, name, chosen=chosen: name in chosen)
    compute_in_bfloat16(model)
    for name in todo.convs:
        _quantize_conv(model.get_submodule(name))
    done = [name for name, m in model.named_modules() if is_quantized(getattr(m, "weight", None))]
    missed = len(todo.layers) + len(todo.convs) - len(done)
    if not done:
        raise ConfigError("the recipe quantized no layer: torchao skipped them all")
    if missed:
        log.info("%d of %d layers stay float: torchao takes no such shape", missed, missed + len(done))
    _round(model)
    return done


class Plan(NamedTuple):
    """Convolutions to rewrite as Linear and those quantized in place; every Linear, then, and its configuration."""

    dense: list[str]
    convs: list[str]
    layers: dict[str, Layer]
    configs: dict[Layer, object | None]


def plan(model: nn.Module, recipe: Recipe) -> Plan:
    """What `quantize` will do to `model`, which is left as it is. Raises ConfigError for what it cannot do."""
    if recipe.weights in CASTS:
        if recipe != Recipe(recipe.weights):
            raise ConfigError(f"{recipe.weights} is a plain cast: leave the other keys out")
        return Plan([], [], {}, {})
    names = choose(model, recipe.layers)
    grouped = [name for name in names if getattr(model.get_submodule(name), "groups", 1) > 1]
    sizes = {name: model.get_submodule(name).weight.numel() for name in names if name not in grouped}
    layers = _overridden(sizes, recipe)
    dense = [name for name in dense_convs(model) if name in layers]
    convs = [name for name in names if isinstance(model.get_submodule(name), nn.Conv2d) and name not in dense]
    inputs = {name: model.get_submodule(name).weight[0].numel() for name in layers if name not in convs}
    fitted = _fit({name: layers[name] for name in inputs}, inputs)
    configs = {layer: _config(layer, recipe.activations) for layer in set(fitted.values())}
    if recipe.train and (recipe.activations or {layer.algorithm for layer in fitted.values()} != {"gptq"}):
        raise ConfigError("train starts from algorithm gptq in every layer and float activations: leave others out")
    inside = {f"{name}.linear" if name in dense else name: layer for name, layer in fitted.items()}
    return Plan(dense, convs, inside, configs)


def _overridden(sizes: Mapping[str, int], recipe: Recipe) -> dict[str, Layer]:
    """How each layer of so many weights is quantized, with the recipe's overrides; of several the last one holds."""
    names, usual = list(sizes), Layer(recipe.weights, recipe.group_size, recipe.algorithm)
    layers = dict.fromkeys(names, usual)
    if small := recipe.small_layers:
        fewer = [name for name, size in sizes.items() if size <= small.weights]
        layers.update(dict.fromkeys(fewer, usual._replace(group_size=small.group_size)))
    for pattern, override in recipe.overrides.items():
        weights = override.weights or recipe.weights
        inherited = (None, "affine") if weights == "float8" else (recipe.group_size, recipe.algorithm)
        layer = Layer(weights, override.group_size or inherited[0], override.algorithm or inherited[1])
        if override == Override():
            raise ConfigError(f"overrides has '{pattern}' without keys: give weights, group_size or algorithm")
        layers.update(dict.fromkeys(match(pattern, names, "overrides"), layer))
    return layers


def fitting(inputs: int, group_size: int) -> int:
    """The largest group, up to `group_size`, that divides a layer's inputs; all of them where that is tiny."""
    best = max(n for n in range(1, group_size + 1) if inputs % n == 0)
    return best if best >= min(4, group_size) else inputs


def _config(layer: Layer, activations: str | None):
    """torchao's configuration, or None where GPTQ does it."""
    make = CONFIGS.get((layer.weights, activations))
    if make is None:
        known = ", ".join(f"{w}+{a}" if a else w for w, a in CONFIGS)
        raise ConfigError(f"no method has {layer.weights} weights with {activations} activations: there are {known}")
    if layer.algorithm != "gptq":
        return make(layer)
    if layer.weights == "float8":
        raise ConfigError("algorithm gptq chooses integer codes: weights must be int8, int4, int3 or int2")
    return None


def _fit(layers: dict[str, Layer], inputs: dict[str, int]) -> dict[str, Layer]:
    """Layers with a group that divides their inputs. Raises ConfigError for a group_size that divides none's."""
    for size in {layer.group_size for layer in layers.values() if layer.group_size}:
        if not any(layer.group_size == size and inputs[name] % size == 0 for name, layer in layers.items()):
            raise ConfigError(f"group_size {size} divides the inputs of no layer: choose 8, 16 or 32")
    fitted = {}
    for name, layer in layers.items():
        if layer.group_size:
            layer = layer._replace(group_size=fitting(inputs[name], layer.group_size))
        elif layer.algorithm == "gptq":
            layer = layer._replace(group_size=inputs[name])
        fitted[name] = layer
    return fitted


def _quantize_conv(conv: nn.Conv2d) -> None:
    """A convolution with groups: int8 codes, one scale an output channel; computed in float."""
    conv.weight = nn.Parameter(int8(conv.weight), requires_grad=False)


def _on(device: torch.device, found: Found) -> Found:
    return {
        name: (Codes(*(part.to(device) for part in codes)), None if bias is None else bias.to(device))
        for name, (codes, bias) in found.items()
    }


def _set(model: nn.Module, results: Found, layers: dict[str, tuple[int, int]], activations: str | None) -> None:
    """Give layers the codes that calibration found, as torchao's tensors."""
    dynamic = "int8_asym_per_token" if activations else None
    for name, (codes, bias) in results.items():
        bits, group_size = layers[name]
        linear = model.get_submodule(name)
        tensor = IntxUnpackedToInt8Tensor(
            codes.codes,
            codes.scale,
            codes.zero,
            getattr(torch, f"int{bits}"),
            (1, group_size),
            linear.weight.dtype,
            dynamic,
        )
        linear.weight = nn.Parameter(tensor, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)


def _round(model: nn.Module) -> None:
    """Round scales, zeros and everything that is not quantized to what float16 holds."""
    for tensor in _floats(model.state_dict(keep_vars=True).values()):
        tensor.copy_(as_float16(tensor))


def _floats(tensors: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    for tensor in tensors:
        quantized = is_quantized(tensor)
        parts = (
            [getattr(tensor, part) for part in tensor.tensor_data_names if part != "qdata"] if quantized else [tensor]
        )
        yield from (part.data for part in parts if part.is_floating_point())
