"""A quantized model as a folder: config.json, preprocessor_config.json, quantization.json, model.safetensors.

The tensors are torchao's own, flattened, with codes below 8 bits packed to their true width and
all-zero zero points left out. What torchao needs to rebuild them stands in quantization.json (the
header of a safetensors file has no stable order, and the bytes must be reproducible).
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from torchao.quantization import IntxUnpackedToInt8Tensor
from transformers import AutoConfig, AutoModelForSemanticSegmentation

from segquant.config import Recipe
from segquant.errors import ModelError, UnavailableError
from segquant.files import read_json, replacing, write_json
from segquant.models import save_preprocessor
from segquant.quant.coverage import LinearConv2d, rewrite
from segquant.quant.methods import BITS, is_quantized
from segquant.quant.packing import pack, unpack

log = logging.getLogger(__name__)
FORMAT = "segquant-1"


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: the model in eval mode and what quantization.json says of it."""

    model: nn.Module
    info: dict[str, Any]
    size_bytes: int
    load_seconds: float


def save_quantized(
    model: nn.Module, recipe: Recipe, folder: str | Path, baseline: str | Path, float32_bytes: int
) -> None:
    """Write the artifact of a model that `methods.quantize` was run on; the folder exists whole or not at all.

    `baseline` is the folder whose preprocessor_config.json goes along, `float32_bytes` the size of its own
    float32 safetensors file, to compare with.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors, metadata = flatten_tensor_state_dict(state)
    modules, packed = {}, {}
    for name, tensor in state.items():
        if not is_quantized(tensor):
            continue
        keys = {part: _key(name, part) for part in json.loads(metadata[name])["_tensor_data_names"]}
        zero = keys.get("zero_point")
        if zero and not tensors[zero].any():
            packed[zero] = {
                "zeros": list(tensors[zero].shape),
                "dtype": str(tensors[zero].dtype).removeprefix("torch."),
            }
            del tensors[zero]
        if isinstance(tensor, IntxUnpackedToInt8Tensor):
            bits, qdata = BITS[recipe.weights], keys["qdata"]
            packed[qdata] = {"bits": bits, "shape": list(tensors[qdata].shape)}
            tensors[qdata] = pack(tensors[qdata], bits)
        modules[name.removesuffix(".weight")] = {
            "bits": BITS[recipe.weights],
            "group_size": tensor.block_size[-1],
            "scheme": type(tensor).__name__,
            "bytes": sum(tensors[k].nbytes for k in keys.values() if k in tensors),
        }
    total = sum(p.numel() for p in model.parameters())
    quantized = sum(state[f"{name}.weight"].numel() for name in modules)
    info = {
        "format": FORMAT,
        "recipe": asdict(recipe),
        "parameters": total,
        "float32_bytes": float32_bytes,
        "quantized_fraction": quantized / total,
        "linear_convs": [name for name, m in model.named_modules() if isinstance(m, LinearConv2d)],
        "modules": modules,
        "packed": packed,
        "tensors": metadata,
    }
    with replacing(folder) as part:
        part.mkdir()
        model.config.save_pretrained(part)
        save_preprocessor(part, baseline)
        save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, part / "model.safetensors")
        write_json(part / "quantization.json", info)


def save_unavailable(recipe: Recipe, reason: str, folder: str | Path) -> None:
    """Write the artifact of a method that this machine cannot run: its recipe and the reason."""
    with replacing(folder) as part:
        part.mkdir()
        write_json(part / "quantization.json", {"format": FORMAT, "recipe": asdict(recipe), "unavailable": reason})


def describe_artifact(folder: str | Path) -> dict[str, Any]:
    """quantization.json of an artifact. Raises ModelError when `folder` is none."""
    path = Path(folder) / "quantization.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a quantized model: it has no quantization.json")
    info = read_json(path)
    if info.get("format") != FORMAT:
        raise ModelError(f"{path} has format {info.get('format')!r}; this version reads {FORMAT!r}: quantize again")
    return info


def load_artifact(folder: str | Path, device: torch.device | str = "cpu") -> Artifact:
    """Load an artifact; its logits are bit-identical to those of the model that was saved.

    Logs time and memory. Raises UnavailableError for a method that could not be run where the
    artifact was made, ModelError for a folder that is no artifact or a broken one.
    """
    folder = Path(folder)
    info = describe_artifact(folder)
    if "unavailable" in info:
        raise UnavailableError(info["unavailable"])
    start, before = time.perf_counter(), psutil.Process().memory_info().rss
    path = folder / "model.safetensors"
    try:
        state = _unpacked(load_file(path), info)
        with torch.device("meta"):
            model = AutoModelForSemanticSegmentation.from_config(AutoConfig.from_pretrained(folder))
            rewrite(model, info["linear_convs"])
        model.load_state_dict(state, assign=True)
    except Exception as error:  # safetensors, torch and transformers raise many types
        raise ModelError(f"{folder} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    model = model.to(device).eval().requires_grad_(False)
    seconds, size = time.perf_counter() - start, path.stat().st_size
    grown = psutil.Process().memory_info().rss - before
    log.info("loaded %s: %.2f MB on disk, %.2f s, %+.1f MB memory", folder, size / 1e6, seconds, grown / 1e6)
    return Artifact(model, info, size, seconds)


def load_quantized(folder: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """The model of `load_artifact`, in eval mode."""
    return load_artifact(folder, device).model


def _key(name: str, part: str) -> str:
    """torchao's name for one part of a flattened tensor: `a.b.weight`, `qdata` -> `a.b._weight_qdata`."""
    module, leaf = name.rsplit(".", 1)
    return f"{module}._{leaf}_{part}"


def _unpacked(tensors: dict[str, torch.Tensor], info: dict[str, Any]) -> dict[str, torch.Tensor]:
    for key, entry in info["packed"].items():
        if "zeros" in entry:
            tensors[key] = torch.zeros(entry["zeros"], dtype=getattr(torch, entry["dtype"]))
        else:
            tensors[key] = unpack(tensors[key], entry["bits"], tuple(entry["shape"]))
    state, leftover = unflatten_tensor_state_dict(tensors, info["tensors"])
    if leftover:
        raise ModelError(f"tensors without a place: {sorted(leftover)[:3]}")
    return state
