"""Apply a recipe to a model; CONFIGS maps (weights, activations) to torchao's configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
import torchao.quantization as ao
from torch import nn

from segquant.base.config import Override, Ranges, Recipe
from segquant.base.errors import ConfigError, ModelError, UnavailableError
from segquant.base.ranks import from_first
from segquant.base.validate import shown
from segquant.quant.calibrate import calibrate
from segquant.quant.codes import Codes, Grid, as_tensor
from segquant.quant.coverage import choose, dense_convs, match, rewrite
from segquant.quant.fake import int8
from segquant.quant.float8 import compute_in_bfloat16, to_bfloat16
from segquant.quant.tensors import CASTS, floats_of, is_quantized, round_to_float16

log = logging.getLogger(__name__)
BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
RANGES = Ranges(6, 6)  # of gptq's codes below 8 bits; those of 8 bits gave four times the error with them

LayerCodes = dict[str, tuple[Codes, torch.Tensor | None]]  # name of a Linear layer -> its codes and bias
# (model, calibrated codes, the grid of each layer, names of convolutions with groups) -> trained codes
Refine = Callable[[nn.Module, LayerCodes, Mapping[str, Grid], Sequence[str]], LayerCodes]


class Layer(NamedTuple):
    """How one layer's weights are quantized; with group_size None, each row has one scale."""

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
    """Call `make` for algorithm affine with one scale per row, else call `otherwise` with the layer.

    Raises ConfigError where there is no `otherwise`.
    """

    def config(layer: Layer):
        if not layer.group_size and layer.algorithm == "affine":
            return make()
        if otherwise is None:
            raise ConfigError(f"{layer.weights} weights have one scale per row: leave group_size and algorithm out")
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


def unavailable(recipe: Recipe, device: torch.device) -> str | None:
    """The reason why `recipe` cannot run on `device`, or None when it can."""
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
    """Quantize `model` in place and move it to `device`; return the names of the quantized modules.

    `images` (N, 3, H, W) are model inputs for calibration, required if recipe.calibration_images is not 0. `refine`
    trains the calibrated codes, required if the recipe has `train`. Scales and all remaining floats are rounded to
    float16, the type in which an artifact stores them. Raises UnavailableError for a recipe that `device` cannot run,
    ConfigError for a recipe that is not supported or fits no layer, and ModelError where torchao takes none of them.
    """
    todo = plan(model, recipe)
    reason = unavailable(recipe, device)
    if reason:
        raise UnavailableError(reason)
    model.to(device)
    if recipe.weights in CASTS:
        model.to(CASTS[recipe.weights])
        return []
    by_gptq = {
        name: Grid(BITS[layer.weights], layer.group_size, ranges(recipe, layer.weights))
        for name, layer in todo.layers.items()
        if layer.algorithm == "gptq"
    }
    if by_gptq and images is None:
        raise ConfigError("algorithm gptq calibrates on images of the train split, but there are none: give some")
    if recipe.train and refine is None:
        raise ConfigError("the recipe has a train section but there are no images to train on: give some")
    rewrite(model, todo.dense)

    def calibrated() -> LayerCodes:
        return _to(torch.device("cpu"), calibrate(model, by_gptq, images.to(device)))

    if by_gptq:
        # Ranks that train together start from the same codes.
        results = _to(device, from_first(calibrated) if recipe.train else calibrated())
        if recipe.train:
            results = refine(model, results, by_gptq, todo.convs)
        _set_codes(model, results, by_gptq, recipe.activations)
    for layer, config in sorted(todo.configs.items(), key=str):
        if config is not None:
            chosen = {name for name, planned in todo.layers.items() if planned == layer}
            if recipe.activations == "float8":
                to_bfloat16(model, chosen)
            ao.quantize_(model, config, filter_fn=lambda _module, name, chosen=chosen: name in chosen)
    compute_in_bfloat16(model)
    for name in todo.convs:
        quantize_conv(model.get_submodule(name))
    quantized = [name for name, m in model.named_modules() if is_quantized(m._parameters.get("weight"))]
    skipped = len(todo.layers) + len(todo.convs) - len(quantized)
    if not quantized:
        raise ModelError("torchao supports the shape of no chosen layer: choose other layers or another method")
    if skipped:
        log.info("%d of %d layers stay float: torchao does not support their shape", skipped, skipped + len(quantized))
    fitted = {f"{name}.weight" for name in by_gptq}  # in the form that an artifact stores
    others = (tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in fitted)
    round_to_float16(part for tensor in others for part in floats_of(tensor))
    return quantized


class Plan(NamedTuple):
    """What `quantize` does to a model; `layers` names the Linear layers after the rewrite."""

    dense: list[str]  # convolutions to rewrite as Linear layers
    convs: list[str]  # convolutions to quantize in place
    layers: dict[str, Layer]
    configs: dict[Layer, object | None]  # torchao's configuration, None for gptq


def plan(model: nn.Module, recipe: Recipe) -> Plan:
    """Plan what `quantize` will do. Raises ConfigError for a recipe that is not supported or fits no layer."""
    if recipe.weights in CASTS:
        if recipe != Recipe(recipe.weights):
            raise ConfigError(f"{recipe.weights} is a plain cast: leave the other keys out")
        return Plan([], [], {}, {})
    names = choose(model, recipe.layers)
    if not names:
        raise ConfigError(f"layers: {recipe.layers}: the model has none of these")
    grouped = [name for name in names if getattr(model.get_submodule(name), "groups", 1) > 1]
    sizes = {name: model.get_submodule(name).weight.numel() for name in names if name not in grouped}
    layers = _overridden(sizes, recipe)
    dense = [name for name in dense_convs(model) if name in layers]
    convs = [name for name in names if isinstance(model.get_submodule(name), nn.Conv2d) and name not in dense]
    inputs = {name: model.get_submodule(name).weight[0].numel() for name in layers if name not in convs}
    fitted = _fit({name: layers[name] for name in inputs}, inputs)
    if recipe.ranges and "gptq" not in {layer.algorithm for layer in fitted.values()}:
        raise ConfigError("ranges are fitted by algorithm gptq: choose it, or leave ranges out")
    configs = {layer: _config(layer, recipe.activations) for layer in set(fitted.values())}
    if recipe.train and (recipe.activations or {layer.algorithm for layer in fitted.values()} != {"gptq"}):
        raise ConfigError("train starts from algorithm gptq in every layer and float activations: choose these")
    rewritten = {f"{name}.linear" if name in dense else name: layer for name, layer in fitted.items()}
    return Plan(dense, convs, rewritten, configs)


def _overridden(sizes: Mapping[str, int], recipe: Recipe) -> dict[str, Layer]:
    """The recipe's settings for each layer, given its number of weights; the last override that matches applies, to
    what the layer has by its size."""
    default, small = Layer(recipe.weights, recipe.group_size, recipe.algorithm), recipe.small_layers
    by_size = dict.fromkeys(sizes, default)
    if small:
        if recipe.weights == "float8" and not small.bits:
            raise ConfigError("small_layers: float8 weights have one scale per row: give bits")
        weights = f"int{small.bits}" if small.bits else recipe.weights
        layer = Layer(weights, small.group_size, recipe.algorithm)
        by_size.update({name: layer for name, size in sizes.items() if size <= small.weights})
    layers = dict(by_size)
    for pattern, override in recipe.overrides.items():
        if override == Override():
            raise ConfigError(f"overrides has '{pattern}' without keys: give weights, group_size or algorithm")
        for name in match(pattern, list(sizes), "overrides"):
            layers[name] = _changed(by_size[name], override)
    return layers


def _changed(layer: Layer, override: Override) -> Layer:
    """The layer with what the override gives, and all else as it is; float8 has no groups."""
    weights = override.weights or layer.weights
    group_size, algorithm = (None, "affine") if weights == "float8" else layer[1:]
    return Layer(weights, override.group_size or group_size, override.algorithm or algorithm)


def ranges(recipe: Recipe, weights: str) -> Ranges | None:
    """The bits of gptq's scales and zeros for such weights; None: float16."""
    if recipe.ranges == "float16":
        return None
    return recipe.ranges or (RANGES if BITS.get(weights, 8) < 8 else None)


def fitting(inputs: int, group_size: int) -> int:
    """The largest divisor of a layer's `inputs` up to `group_size`; `inputs` itself when that divisor is below 4."""
    best = max(n for n in range(1, min(group_size, inputs) + 1) if inputs % n == 0)
    return best if best >= min(4, group_size) else inputs


def check_group_sizes(sizes: Collection[int], inputs: Iterable[int], key: str = "group_size") -> None:
    """Raise ConfigError, which names the `key`, where no size divides the `inputs` of any layer."""
    if not any(count % size == 0 for count in inputs for size in sizes):
        divide = "divides" if len(sizes) == 1 else "divide"
        raise ConfigError(f"{key} {', '.join(map(shown, sizes))} {divide} the inputs of no layer: choose 8, 16 or 32")


def _config(layer: Layer, activations: str | None):
    """torchao's configuration, or None for algorithm gptq."""
    make = CONFIGS.get((layer.weights, activations))
    if make is None:
        known = ", ".join(f"{w}+{a}" if a else w for w, a in CONFIGS)
        raise ConfigError(f"no method has {layer.weights} weights with {activations} activations: choose from {known}")
    if layer.algorithm != "gptq":
        return make(layer)
    if layer.weights == "float8":
        raise ConfigError(f"algorithm gptq does not support {layer.weights} weights: choose int8, int4, int3 or int2")
    return None


def _fit(layers: dict[str, Layer], inputs: dict[str, int]) -> dict[str, Layer]:
    """Fit each layer's group size to its inputs. Raises ConfigError for a group_size that divides no layer's inputs."""
    for size in {layer.group_size for layer in layers.values() if layer.group_size}:
        check_group_sizes([size], [inputs[name] for name, layer in layers.items() if layer.group_size == size])
    fitted = {}
    for name, layer in layers.items():
        if layer.group_size:
            layer = layer._replace(group_size=fitting(inputs[name], layer.group_size))
        elif layer.algorithm == "gptq":
            layer = layer._replace(group_size=inputs[name])
        fitted[name] = layer
    return fitted


def quantize_conv(conv: nn.Conv2d) -> None:
    """Quantize a convolution with groups to int8 codes, one scale per output channel; it computes in float."""
    conv.weight = nn.Parameter(int8(conv.weight), requires_grad=False)


def _to(device: torch.device, results: LayerCodes) -> LayerCodes:
    return {
        name: (Codes(*(part.to(device) for part in codes)), None if bias is None else bias.to(device))
        for name, (codes, bias) in results.items()
    }


def _set_codes(model: nn.Module, results: LayerCodes, layers: Mapping[str, Grid], activations: str | None) -> None:
    """Replace the weights by torchao tensors that hold the codes, and set the biases."""
    for name, (codes, bias) in results.items():
        linear = model.get_submodule(name)
        tensor = as_tensor(codes, layers[name], linear.weight.dtype, dynamic=activations is not None)
        linear.weight = nn.Parameter(tensor, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias, requires_grad=False)
