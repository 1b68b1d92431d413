"""An artifact of PyTorch's as one ONNX graph: codes at their true width, and operators that decode them.

ONNX Runtime folds these operators when it loads the file, and then runs the float model's own graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation
from transformers.initialization import no_init_weights

from segquant.base.errors import ModelError
from segquant.deploy.decode import Nodes, constant, floats, weight
from segquant.deploy.graph import ConvFuse
from segquant.engines.extras import needs
from segquant.quant.coverage import LinearConv2d
from segquant.quant.head import has_segformers_head
from segquant.quant.tensors import is_quantized

if TYPE_CHECKING:
    import onnx

Write = Callable[[Nodes], str]  # writes a weight, and gives its name
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def float_twin(model: nn.Module) -> nn.Module:
    """The float32 model whose weights are those that a quantized model's codes stand for."""
    inner = {f"{name}.linear" for name, module in model.named_modules() if isinstance(module, LinearConv2d)}
    with no_init_weights():
        twin = AutoModelForSemanticSegmentation.from_config(model.config)
    expected, state = twin.state_dict(), {}
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        name = f"{module.removesuffix('.linear')}.{leaf}" if module in inner else name
        state[name] = (tensor.dequantize() if is_quantized(tensor) else tensor).reshape(expected[name].shape)
    twin.load_state_dict(state)
    return twin.float().eval().requires_grad_(False)


def pack_weights(graph: onnx.GraphProto, model: nn.Module, twin: nn.Module) -> None:
    """Put the codes of a quantized model in place of the weights in its float twin's graph; shorten all names.

    Raises ModelError for a graph with branches, and for one that has other matrices in the place of quantized ones, as
    where the exporter folds a normalization into them or joins several. A layer that the graph does without, such as an
    auxiliary head's, is not there.
    """
    without_branches(graph)
    sources = _sources(model, twin)
    missing, other = {layer for layer, _ in sources.values()}, False
    matrices = [values for values in twin.state_dict().values() if values.ndim > 1]
    in_twin = {_key(part.numpy()) for values in matrices for part in (values, values.transpose(0, 1))}
    nodes, names = Nodes(), {}
    for tensor in graph.initializer:
        values = needs("onnx").numpy_helper.to_array(tensor)
        layer, write = sources.get(_key(values), ("", None))
        missing.discard(layer)
        if write:
            names[tensor.name] = write(nodes)
        else:
            names[tensor.name] = constant(nodes, values)
            other |= values.dtype == np.float32 and values.ndim > 1 and _key(values) not in in_twin
    if missing and other:
        raise ModelError(
            f"the exporter changed the weights of {len(missing)} quantized layers, such as {min(missing)}: their codes "
            "cannot be written"
        )
    replace_initializers(graph, nodes, names)


def without_branches(graph: onnx.GraphProto) -> None:
    """Raise ModelError for a graph that has others in it, whose names would have to change too."""
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        raise ModelError("the model's graph has branches: codes are written for graphs without")


def replace_initializers(graph: onnx.GraphProto, nodes: Nodes, names: dict[str, str]) -> None:
    """Put `nodes` and their constants in place of a graph's initializers, {each one's name: its value's name there};
    shorten all names."""
    original, shapes = list(graph.node), [info for info in graph.value_info if info.name not in names]
    for field in ("node", "initializer", "value_info"):
        graph.ClearField(field)
    decoding, constants = nodes.written()
    graph.initializer.extend(constants)
    graph.node.extend([*decoding, *original])
    graph.value_info.extend(shapes)  # without them ONNX Runtime fuses fewer nodes
    ends = {end.name for end in (*graph.input, *graph.output)}
    short = (name for number in count() if (name := _short(number)) not in ends)
    _rename(graph, names, defaultdict(lambda: next(short), {name: name for name in (*ends, "")}))


def quantized_weights(model: nn.Module, twin: nn.Module) -> dict[str, torch.Tensor]:
    """The quantized weights of a model, by the names of their layers in its twin."""
    tensors = {layer: getattr(model.get_submodule(layer), "weight", None) for layer, _ in twin.named_modules()}
    return {layer: tensor for layer, tensor in tensors.items() if is_quantized(tensor)}


def _sources(model: nn.Module, twin: nn.Module) -> dict[Any, tuple[str, Write]]:
    """{key of a weight in the twin's graph, as it is or transposed: (its layer, how to write it)}."""
    quantized = quantized_weights(model, twin)
    sources: dict[Any, tuple[str, Write]] = {}
    if has_segformers_head(twin):
        head = fused_layers(twin.decode_head)
        if not quantized.keys().isdisjoint(head):
            for number, stage in enumerate(ConvFuse(twin.decode_head).stages):
                write = partial(_fused, twin.decode_head, quantized, number)
                sources[_key(stage.weight.numpy())] = (f"decode_head, stage {number}", write)
            quantized = {layer: tensor for layer, tensor in quantized.items() if layer not in head}
    for layer, tensor in quantized.items():
        values = twin.get_submodule(layer).weight.numpy()
        if values.ndim == 2:
            sources[_key(values.T)] = (layer, partial(_transposed, tensor=tensor, shape=values.shape))
        sources[_key(values)] = (layer, partial(weight, tensor=tensor, shape=values.shape))
    return sources


def _key(values: np.ndarray) -> tuple:
    return values.dtype.name, values.shape, values.tobytes()


def _transposed(nodes: Nodes, tensor: torch.Tensor, shape: Sequence[int]) -> str:
    return nodes.add("Transpose", weight(nodes, tensor, shape), perm=[1, 0])


def fused_layers(head: nn.Module) -> list[str]:
    """The layers of a SegFormer's decode head whose weights a graph has as products."""
    return ["decode_head.linear_fuse", *_projections(head)]


def _projections(head: nn.Module) -> list[str]:
    return [f"decode_head.linear_projections.{number}.proj" for number in range(len(head.linear_projections))]


def _fused(head: nn.Module, quantized: dict[str, torch.Tensor], number: int, nodes: Nodes) -> str:
    """The matrix of a stage of ConvFuse: its part of the fusing layer, scaled by the normalization, times its
    projection. The product is a convolution: as a MatMul of two decoded matrices it was seen to be wrong on OpenVINO.
    """

    def matrix(layer: str, module: nn.Module) -> str:
        shape = tuple(module.weight.flatten(1).shape)
        if layer in quantized:
            return weight(nodes, quantized[layer], shape)
        return nodes.reshape(floats(nodes, module.weight), shape)

    norm, stages = head.batch_norm, len(head.linear_projections)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    fuse = matrix("decode_head.linear_fuse", head.linear_fuse)
    width = head.linear_fuse.weight.shape[1] // stages
    start = (stages - 1 - number) * width  # the fusion's input begins with the last stage
    ends = (nodes.constant(np.array([value], np.int64)) for value in (start, start + width, 1))
    part = nodes.add("Mul", nodes.add("Slice", fuse, *ends), floats(nodes, scale[:, None]))
    projection = head.linear_projections[number].proj
    inputs = nodes.reshape(matrix(_projections(head)[number], projection), (1, width, 1, -1))
    product = nodes.add("Conv", inputs, nodes.reshape(part, (-1, width, 1, 1)))
    return nodes.reshape(product, (head.linear_fuse.weight.shape[0], -1, 1, 1))


def _short(number: int) -> str:
    """a, b, ..., z, aa, ba, ..."""
    name = _LETTERS[number % 26]
    while number := number // 26:
        number -= 1
        name += _LETTERS[number % 26]
    return name


def _rename(graph: onnx.GraphProto, aliases: dict[str, str], names: dict[str, str]) -> None:
    """Give each value of a graph a short name; `aliases` are other names of some."""

    def new(name: str) -> str:
        return names[aliases.get(name, name)]

    for tensor in (*graph.initializer, *graph.value_info, *graph.input, *graph.output):
        tensor.name = new(tensor.name)
    for node in graph.node:
        node.ClearField("name")
        for values in (node.input, node.output):
            values[:] = map(new, values)
