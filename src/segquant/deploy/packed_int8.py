"""Codes below 8 bits in a graph that computes in int8: decoded, and quantized again as the graph's quantizer did it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
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


def pack_int8(graph: onnx.GraphProto, model: nn.Module, twin: nn.Module) -> None:
    """Put the codes of a quantized model in place of the int8 weights that deploy/pt2e.py gave its float twin.

    Folded, the operators are the very same int8 weights. Weights whose codes have 8 bits stay as they are, and so do
    the products of the decode head: their int8 takes no more bytes than the codes of both factors.

    Raises ModelError for a graph with branches, and for one that has other matrices in the place of quantized ones.
    """
    without_branches(graph)
    head = fused_layers(twin.decode_head) if has_segformers_head(twin) else []
    codes = {
        layer: tensor
        for layer, tensor in quantized_weights(model, twin).items()
        if bits(tensor) < 8 and layer not in head
    }
    matrices = [values.numpy() for values in Pixels(twin).state_dict().values() if values.ndim > 1]
    missing, other = set(codes), False
    arrays = {tensor.name: needs("onnx").numpy_helper.to_array(tensor) for tensor in graph.initializer}
    scales = {node.input[0]: node.input[1] for node in graph.node if node.op_type == "DequantizeLinear"}
    nodes, names = Nodes(), {}
    for name, values in arrays.items():
        if values.dtype == np.int8 and values.ndim > 1 and name in scales:
            scale = arrays[scales[name]]
            same = {layer for layer in codes if _gives(twin.get_submodule(layer).weight.numpy(), scale, values)}
            missing -= same
            if same:
                decoded = weight(nodes, codes[min(same)], values.shape)
                names[name] = _quantized(nodes, decoded, scale, values.ndim)
                continue
            other |= not any(_gives(matrix, scale, values) for matrix in matrices)
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


def _gives(matrix: np.ndarray, scale: np.ndarray, codes: np.ndarray) -> bool:
    return matrix.shape == codes.shape and np.array_equal(_codes(matrix, scale), codes)


def _quantized(nodes: Nodes, matrix: str, scale: np.ndarray, sides: int) -> str:
    """`_codes` as operators on a value with this number of sides."""
    inverse = nodes.add("Div", nodes.constant(np.float32(1)), nodes.constant(scale))
    scaled = nodes.add("Mul", matrix, nodes.reshape(inverse, (-1, *[1] * (sides - 1))))
    limits = (nodes.constant(np.float32(limit)) for limit in (-128, 127))
    clipped = nodes.add("Clip", nodes.add("Round", scaled), *limits)
    return nodes.add("Cast", clipped, to=needs("onnx").TensorProto.INT8)
