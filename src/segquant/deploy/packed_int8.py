"""Codes below 8 bits in a graph that computes in int8: decoded, and quantized again as the graph's quantizer did it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from segquant.base.errors import ModelError
from segquant.deploy.decode import Nodes, constant, weight
from segquant.deploy.graph import Pixels
from segquant.deploy.packed import fused_layers, quantized_weights, replace_initializers, without_branches
from segquant.engines.extras import needs
from segquant.quant.head import has_segformers_head
from segquant.quant.tensors import bits

if TYPE_CHECKING:
    import onnx

HALF, LEAST = np.float32(127.5), np.float32(2**-12)  # PT2E divides a row's largest value by HALF; its least scale


def coded(model: nn.Module, twin: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a quantized model that an int8 graph of its float twin has as codes, by the names of their layers.

    Weights whose codes have 8 bits are not among them, nor are the products of the decode head: their int8 takes no
    more bytes than the codes of both factors.
    """
    head = fused_layers(twin.decode_head) if has_segformers_head(twin) else []
    tensors = quantized_weights(model, twin)
    return {layer: tensor for layer, tensor in tensors.items() if bits(tensor) < 8 and layer not in head}


def pack_int8(graph: onnx.GraphProto, model: nn.Module, twin: nn.Module) -> None:
    """Put the codes of a quantized model in place of the weights that deploy/pt2e.py gave its float twin.

    Folded, the operators are the very same int8 weights, or the floats of a layer that stays float. Weights that are
    not `coded` stay as they are.

    Raises ModelError for a graph with branches, and for one that has other matrices in the place of quantized ones.
    """
    without_branches(graph)
    codes = coded(model, twin)
    matrices = [values.numpy() for values in Pixels(twin).state_dict().values() if values.ndim > 1]
    missing, other = set(codes), False
    arrays = {tensor.name: needs("onnx").numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {node.input[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes, names = Nodes(), {}
    for name, values in sorted(arrays.items(), key=lambda item: item[1].ndim < 2):  # scales after what they are of
        scale = arrays[scales[name]] if values.dtype == np.int8 and name in scales else None
        if values.ndim > 1 and (scale is not None or values.dtype == np.float32):
            same = {layer for layer in codes if _gives(twin.get_submodule(layer).weight.numpy(), scale, values)}
            missing -= same
            if same:
                names[name] = weight(nodes, codes[min(same)], values.shape)
                if scale is not None:
                    matrix = twin.get_submodule(min(same)).weight.numpy()
                    names[scales[name]] = _scale(nodes, names[name], matrix, scale)
                    names[name] = _quantized(nodes, names[name], names[scales[name]], values.ndim)
                continue
            other |= not any(_gives(matrix, scale, values) for matrix in matrices)
        if name not in names:
            names[name] = constant(nodes, values)
    if missing and other:
        raise ModelError(
            f"the exporter changed the weights of {len(missing)} quantized layers, such as {min(missing)}: their codes "
            "cannot be written"
        )
    replace_initializers(graph, nodes, names)


def _codes(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """int8 codes of a float32 matrix by a scale for each row: as PT2E finds them, by the inverse of the scale."""
    inverse = (np.float32(1) / scale).reshape(-1, *[1] * (matrix.ndim - 1))
    return np.clip(np.rint(matrix * inverse), -128, 127).astype(np.int8)


def _gives(matrix: np.ndarray, scale: np.ndarray | None, values: np.ndarray) -> bool:
    """Whether `values` are a matrix, in int8 if there is a `scale` for each row."""
    return matrix.shape == values.shape and np.array_equal(matrix if scale is None else _codes(matrix, scale), values)


def _scale(nodes: Nodes, decoded: str, matrix: np.ndarray, scale: np.ndarray) -> str:
    """The scale (rows,) of a matrix that is decoded: from its largest values, as PT2E finds it, where it is that."""
    axes = tuple(range(1, matrix.ndim))
    exact = np.abs(matrix).max(axes) / HALF
    if not np.array_equal(np.maximum(exact, LEAST), scale):
        return nodes.constant(scale)
    largest = nodes.add("ReduceMax", nodes.add("Abs", decoded), nodes.constant(np.array(axes, np.int64)), keepdims=0)
    computed = nodes.add("Div", largest, nodes.constant(HALF))
    return computed if exact.min() >= LEAST else nodes.add("Max", computed, nodes.constant(LEAST))


def _quantized(nodes: Nodes, matrix: str, scale: str, sides: int) -> str:
    """`_codes` as operators on a value with this number of sides."""
    inverse = nodes.add("Div", nodes.constant(np.float32(1)), scale)
    scaled = nodes.add("Mul", matrix, nodes.reshape(inverse, (-1, *[1] * (sides - 1))))
    limits = (nodes.constant(np.float32(limit)) for limit in (-128, 127))
    clipped = nodes.add("Clip", nodes.add("Round", scaled), *limits)
    return nodes.add("Cast", clipped, to=needs("onnx").TensorProto.INT8)
