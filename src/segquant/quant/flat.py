"""A quantized state dict as the flat tensors of a safetensors file, packed to their true width, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

from segquant.base.errors import ModelError
from segquant.base.files import parse_json
from segquant.base.validate import shown
from segquant.quant.packing import pack, unpack
from segquant.quant.ranges import from_shares, from_steps, shares_of, steps_of
from segquant.quant.tensors import CASTS, dtype_name, is_quantized

SHARES = "_shares"  # after the key of scales that are packed: what share of their row's largest they are
_NAMES = "tensor_names"  # torchao's key for the list of names, beside an entry for each
_KINDS = ("Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor", "Float8Tensor")
_CODES = (torch.int8, torch.float8_e4m3fn)


def key_of(name: str, part: str) -> str:
    """torchao's key for a part of a flattened tensor: `a.b.weight`, `qdata` -> `a.b._weight_qdata`."""
    module, leaf = name.rsplit(".", 1)
    return f"{module}._{leaf}_{part}"


def pack_codes(tensors: dict[str, torch.Tensor], keys: list[str], width: int) -> dict[str, dict[str, Any]]:
    """Pack codes of `width` bits and their ranges among `tensors[keys]`, in place; return how to undo it.

    All-zero zero points are dropped; other ranges are packed where they are on the grids of quant/ranges.py.
    """
    packed = {}
    for key in keys:
        values, shape = tensors[key], list(tensors[key].shape)
        if key.endswith("_zero_point") and not values.any():
            packed[key] = {"zeros": shape, "dtype": dtype_name(tensors.pop(key).dtype)}
        elif key.endswith("_qdata") and width < 8:
            packed[key] = {"bits": width, "shape": shape}
            tensors[key] = pack(values, width)
        elif key.endswith("_zero_point") and (steps := steps_of(values, width)):
            packed[key] = {"steps": steps[1], "shape": shape, "of": width}
            tensors[key] = pack(steps[0].to(torch.int8), steps[1])
        elif key.endswith("_scale") and values.ndim == 2 and shape[1] > 1 and (shares := shares_of(values)):
            tensors[key], integers, bits = shares
            packed[key] = {"shares": bits, "shape": shape}
            tensors[key + SHARES] = pack((integers - 1 - 2 ** (bits - 1)).to(torch.int8), bits)
    return packed


def state_of(tensors: dict[str, torch.Tensor], info: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Reverse `pack_codes`, the rounding to float16 and torchao's flattening, as `info` (quantization.json) says.

    Raises ModelError for what segquant does not write.
    """
    _check_described(info["tensors"])
    if info["recipe"]["weights"] not in CASTS:
        tensors = {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}
    for key, entry in info["packed"].items():
        tensors[key] = _unpacked(key, entry, tensors, info["packed"])
    state, leftover = unflatten_tensor_state_dict(tensors, info["tensors"])
    if leftover:
        raise ModelError(f"model.safetensors has tensors that quantization.json does not name: {sorted(leftover)[:3]}")
    return state


def _unpacked(
    key: str, entry: Mapping[str, Any], tensors: dict[str, torch.Tensor], packed: Mapping[str, Any]
) -> torch.Tensor:
    """The tensor `key` as it was before `pack_codes`."""
    if "zeros" in entry:
        scale = packed.get(_beside(key, "scale"), {}).get("shape") or tensors[_beside(key, "scale")].shape
        if math.prod(entry["zeros"]) != math.prod(scale):
            raise ModelError(f"quantization.json has other zeros in {key} than the weights have scales")
        return torch.zeros(entry["zeros"], dtype=getattr(torch, entry["dtype"]))
    if "bits" in entry:
        return unpack(tensors[key], entry["bits"], tuple(entry["shape"]))
    width, shape = entry["steps" if "steps" in entry else "shares"], tuple(entry["shape"])
    if "steps" in entry:
        if entry["of"] != packed.get(_beside(key, "qdata"), {"bits": 8})["bits"]:
            raise ModelError(f"quantization.json has {key} for codes of other bits than the weights have")
        return from_steps(unpack(tensors[key], width, shape), entry["of"], width)
    shares, largest = unpack(tensors.pop(key + SHARES), width, shape), tensors[key]
    if largest.shape != (shape[0], 1):
        raise ModelError(f"quantization.json has other rows in {key} than model.safetensors")
    return from_shares(largest, shares.float() + 1 + 2 ** (width - 1), width)


def _beside(key: str, part: str) -> str:
    """The key of another part of the same weight."""
    return f"{key[: key.rindex('_weight_')]}_weight_{part}"


def _check_described(described: Mapping[str, Any]) -> None:
    """Raise ModelError unless torchao's metadata name each tensor once, of a kind that segquant writes."""
    names = parse_json(described.get(_NAMES, "null"))
    if not isinstance(names, list) or sorted(map(str, names)) != sorted(described.keys() - {_NAMES}):
        raise ModelError(f"quantization.json does not list the tensors that it describes in {_NAMES}")
    for name in names:
        entry = parse_json(described[name])
        kind = entry.get("_type") if isinstance(entry, dict) else entry
        if kind not in _KINDS:
            raise ModelError(f"quantization.json has {name} as {shown(kind)}, which segquant does not write")


def _check_codes(name: str, tensor: torch.Tensor) -> None:
    """Raise ModelError for codes or scales that no algorithm writes, some of which would be broadcast."""
    if tensor.qdata.dtype not in _CODES:
        raise ModelError(f"it has codes of {name} as {dtype_name(tensor.qdata.dtype)}")
    blocks = [side // block for side, block in zip(tensor.shape, tensor.block_size, strict=True)]
    zero = getattr(tensor, "zero_point", None)
    for part, values in {"scales": tensor.scale, "zeros": tensor.scale if zero is None else zero}.items():
        if list(values.shape) != blocks or values.dtype == torch.float64:
            form = f"{list(values.shape)} of {dtype_name(values.dtype)}"
            raise ModelError(f"it has {part} of {name} as {form}, which segquant does not write")


def check_state(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], weights: str) -> None:
    """Raise ModelError unless `state` has the tensors of `expected`, the model's on the meta device, and dtypes that
    segquant writes: others load, and fail when the model runs or make it another model."""
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or name not in expected:
            raise ModelError(f"it {'has' if name in state else 'lacks'} {name}, which does not fit its config.json")
        tensor, shape = state[name], expected[name].shape
        if tensor.shape != shape:
            raise ModelError(f"it has {name} as {list(tensor.shape)}, but config.json has {list(shape)}")
        if is_quantized(tensor):
            _check_codes(name, tensor)
        elif tensor.is_floating_point() and tensor.dtype != CASTS.get(weights, torch.float32):
            raise ModelError(f"it has {name} as {dtype_name(tensor.dtype)}, which segquant does not write")
        elif not tensor.is_floating_point() and expected[name].is_floating_point():
            raise ModelError(f"it has {name} as {dtype_name(tensor.dtype)}, which segquant does not write")
