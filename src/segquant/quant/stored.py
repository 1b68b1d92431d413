"""The tensors of a quantized state dict as model.safetensors holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import torch
from safetensors.torch import save
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

from segquant.quant.flat import SHARES, key_of, pack_codes
from segquant.quant.tensors import bits, is_quantized, narrowed


class Stored(NamedTuple):
    """`tensors` of the file; `metadata` from which torchao rebuilds its own, and how `packed` ones are unpacked;
    `parts`, the keys of the tensors that each quantized weight became."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    packed: dict[str, dict]
    parts: dict[str, list[str]]


def stored(state: Mapping[str, torch.Tensor], cast: bool) -> Stored:
    """Flatten a state dict and pack codes to their true width; unless it was `cast` to a float type, store floats as
    float16 where that is exact."""
    tensors, metadata = flatten_tensor_state_dict(dict(state))
    packed, parts = {}, {}
    for name, tensor in state.items():
        if is_quantized(tensor):
            keys = [key_of(name, part) for part in json.loads(metadata[name])["_tensor_data_names"]]
            packed |= pack_codes(tensors, keys, bits(tensor))
            parts[name] = [key for part in keys for key in (part, part + SHARES) if key in tensors]
    if not cast:
        tensors = {name: narrowed(tensor) for name, tensor in tensors.items()}
    return Stored(tensors, metadata, packed, parts)


def file_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The content of a safetensors file."""
    return save({name: tensor.contiguous() for name, tensor in sorted(tensors.items())})
