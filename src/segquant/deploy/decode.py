"""Operators of ONNX that decode quantized weights: from constants as small as an artifact's to float32.

Each operator is a standard one on constants, so that an engine can fold them all when it loads a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce
from itertools import count
from typing import Any

import numpy as np
import torch

from segquant.engines.extras import needs
from segquant.quant.packing import pack
from segquant.quant.ranges import from_steps, shares_of, steps_of
from segquant.quant.tensors import bits, narrowed

_SMALLEST = 32  # numbers from which float16 and a Cast are smaller than float32


class Nodes:
    """Nodes and constants, in the order in which they are made; equal ones are one."""

    def __init__(self) -> None:
        self._nodes: dict[tuple, Any] = {}
        self._constants: dict[tuple, Any] = {}
        self._numbers = count()
        self._grids: dict[tuple[int, int, float], dict[str, torch.Tensor]] = defaultdict(dict)

    def written(self) -> tuple[list[Any], list[Any]]:
        """All nodes, those that decode integers of grids first, and all constants."""
        before, self._nodes = self._nodes, {}
        for (width, offset, step), parts in self._grids.items():
            whole = _integers(self, torch.cat([*parts.values()]), width, offset, flat=True)
            whole = self.add("Mul", whole, self.constant(np.array(step, np.float32)))
            sizes = self.constant(np.array([len(part) for part in parts.values()], np.int64))
            split = needs("onnx").helper.make_node("Split", [whole, sizes], [*parts], axis=0)
            self._nodes[("Split", width, offset, step)] = split
        decoding, self._nodes = self._nodes, before
        return [*decoding.values(), *before.values()], [*self._constants.values()]

    def constant(self, values: np.ndarray) -> str:
        key = (values.dtype.name, values.shape, values.tobytes())
        if key not in self._constants:
            name = f"segquant/constant {len(self._constants)}"
            self._constants[key] = needs("onnx").numpy_helper.from_array(values, name)
        return self._constants[key].name

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node; gives the name of its output."""
        key = (kind, inputs, repr(attributes))
        if key not in self._nodes:
            name = f"segquant/decoded {next(self._numbers)}"
            self._nodes[key] = needs("onnx").helper.make_node(kind, inputs, [name], **attributes)
        return self._nodes[key].output[0]

    def on_grid(self, integers: torch.Tensor, width: int, offset: int, step: float, shape: Sequence[int]) -> str:
        """(integers + offset) * step as float32 of `shape`, for integers (N,) from 0 to 2**width - 1.

        Those of all weights are decoded together: nodes for each weight made an int2 file 3 % larger.
        """
        parts = self._grids[width, offset, step]
        name = next((name for name, part in parts.items() if torch.equal(part, integers)), None)
        if name is None:
            name = f"segquant/grid {width} {offset} {step} {len(parts)}"
            parts[name] = integers
        return self.reshape(name, shape)

    def reshape(self, value: str, shape: Sequence[int]) -> str:
        return self.add("Reshape", value, self.constant(np.array(shape, np.int64)))

    def to_float32(self, value: str) -> str:
        return self.add("Cast", value, to=needs("onnx").TensorProto.FLOAT)


def floats(nodes: Nodes, values: torch.Tensor) -> str:
    """float32 `values`, stored as float16 where that is exact."""
    narrow = narrowed(values) if values.numel() >= _SMALLEST else values
    name = nodes.constant(narrow.numpy())
    return name if narrow.dtype == values.dtype else nodes.to_float32(name)


def constant(nodes: Nodes, values: np.ndarray) -> str:
    """`values` of any type; float32 as `floats` stores them."""
    return floats(nodes, torch.from_numpy(values.copy())) if values.dtype == np.float32 else nodes.constant(values)


def weight(nodes: Nodes, tensor: torch.Tensor, shape: Sequence[int]) -> str:
    """The float32 values of one of torchao's quantized tensors, by the operations of its `dequantize`, as `shape`."""
    rows, groups = len(tensor), tensor.scale.numel() // len(tensor)
    grouped = nodes.reshape(_codes(nodes, tensor), (rows, groups, -1))
    zero = getattr(tensor, "zero_point", None)
    if zero is not None and zero.any():
        grouped = nodes.add("Sub", grouped, _zero(nodes, zero.float().reshape(rows, groups, 1), bits(tensor)))
    scaled = nodes.add("Mul", grouped, _scale(nodes, tensor.scale.float().reshape(rows, groups)))
    return nodes.reshape(scaled, shape)


def _scale(nodes: Nodes, scale: torch.Tensor) -> str:
    """Scales (rows, groups) as (rows, groups, 1): shares of their row's largest where they are on such a grid."""
    shares = shares_of(scale) if scale.shape[1] > 1 else None
    if not shares:
        return floats(nodes, scale[..., None])
    largest, integers, width = shares
    share = nodes.on_grid(integers.flatten().int() - 1, width, 1, 2.0**-width, (*scale.shape, 1))
    return nodes.add("Mul", share, floats(nodes, largest[..., None]))


def _zero(nodes: Nodes, zero: torch.Tensor, width: int) -> str:
    """Zeros of any shape, for codes of `width` bits: steps of a grid where they are on one."""
    steps = steps_of(zero, width)
    if not steps:
        return floats(nodes, zero)
    half, step = 2 ** (steps[1] - 1), from_steps(torch.ones(()), width, steps[1]).item()
    return nodes.on_grid(steps[0].flatten().int() + half, steps[1], -half, step, zero.shape)


def _codes(nodes: Nodes, tensor: torch.Tensor) -> str:
    """The codes of a quantized tensor as float32."""
    codes, width = tensor.qdata, bits(tensor)
    if codes.dtype == torch.float8_e4m3fn:  # by a table, as not every engine knows the type
        table = nodes.constant(torch.arange(256, dtype=torch.uint8).view(codes.dtype).float().numpy())
        return _looked_up(nodes, table, codes.view(torch.uint8))
    if width == 8:
        return nodes.to_float32(nodes.constant(codes.numpy()))
    half = 1 << (width - 1)
    return _integers(nodes, codes.flatten() + half, width, -half)


def _integers(nodes: Nodes, numbers: torch.Tensor, width: int, least: int, flat: bool = False) -> str:
    """numbers + least as float32, for numbers (N,) from 0 to 2**width - 1; `flat`: as (N,).

    Fields of 8, 4, 2 and 1 of their bits fill bytes, and a table has the fields of each byte. Arithmetic would pass
    over all numbers several times, which takes engines longer, and OpenVINO turns shifts into divisions.
    """
    parts, low = [], 0
    for field in (size for size in (8, 4, 2, 1) if width & size):
        half, positions = 1 << (field - 1), np.arange(0, 8, field)
        fields = (np.arange(256)[:, None] >> positions & 2 * half - 1) << low
        table = nodes.to_float32(nodes.constant(fields.astype(np.uint8)))
        if low + field == width:
            table = nodes.add("Add", table, nodes.constant(np.array(least, np.float32)))
        part = _looked_up(nodes, table, pack((numbers >> low & 2 * half - 1) - half, field))
        whole = field == width and len(numbers) * field % 8 == 0 and not flat
        parts.append(part if whole else _first(nodes, part, len(numbers)))
        low += field
    return reduce(lambda total, part: nodes.add("Add", total, part), parts)


def _looked_up(nodes: Nodes, table: str, numbers: torch.Tensor) -> str:
    """Rows of a table, by uint8 numbers of any shape."""
    indices = nodes.add("Cast", nodes.constant(numbers.numpy()), to=needs("onnx").TensorProto.INT32)
    return nodes.add("Gather", table, indices)


def _first(nodes: Nodes, values: str, number: int) -> str:
    """The first `number` of all values, as (number,): a last byte may hold more."""
    start, end = (nodes.constant(np.array([index], np.int64)) for index in (0, number))
    return nodes.add("Slice", nodes.reshape(values, (-1,)), start, end)
