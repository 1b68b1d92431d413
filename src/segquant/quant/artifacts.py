"""Save and load a quantized model: config.json, preprocessor_config.json, quantization.json, model.safetensors.

model.safetensors holds torchao's tensors, flattened: codes below 8 bits are packed to their true width, floats are
stored as float16 where that is exact, and zero points that are all zero are omitted. quantization.json holds the
metadata from which torchao rebuilds the tensors, and a digest of each file, which reveals any change. (The header of a
safetensors file could hold the metadata too, but its order is not stable, and artifacts must be reproducible.)
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file, save
from torch import nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict, unflatten_tensor_state_dict
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.initialization import no_init_weights

import segquant
from segquant.base.allocator import aligned
from segquant.base.config import Method, Recipe
from segquant.base.errors import ModelError, UnavailableError, one_line
from segquant.base.failures import missing
from segquant.base.files import digest, read_json, replacing, sha256, write_bytes, write_json
from segquant.base.hub import locate
from segquant.models import check_config, save_preprocessor
from segquant.quant.coverage import LinearConv2d, rewrite
from segquant.quant.float8 import compute_in_bfloat16
from segquant.quant.packing import pack, unpack
from segquant.quant.tensors import CASTS, bits, dtype_name, is_quantized, narrowed

log = logging.getLogger(__name__)
FORMAT = "segquant-2"  # another number when older versions cannot read it; CHANGELOG.md says which version writes it


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: the model in eval mode and the content of quantization.json."""

    model: nn.Module
    info: dict[str, Any]
    size_bytes: int
    load_seconds: float


def save_quantized(
    model: nn.Module,
    recipe: Recipe,
    folder: str | Path,
    baseline: str | Path,
    float32_bytes: int,
    run: str | None = None,
) -> None:
    """Write a model that `recipes.quantize` has quantized; the folder appears complete or not at all.

    `baseline` is the folder whose preprocessor_config.json is copied, `float32_bytes` the size of the float32
    safetensors file to compare with, and `run` the name of the training that made the model, if any.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors, metadata = flatten_tensor_state_dict(state)
    convs = [name for name, m in model.named_modules() if isinstance(m, LinearConv2d)]
    packed, parts = {}, {}
    for name, tensor in state.items():
        if is_quantized(tensor):
            keys = [_key(name, part) for part in json.loads(metadata[name])["_tensor_data_names"]]
            packed |= _pack(tensors, keys, bits(tensor))
            parts[name] = [key for key in keys if key in tensors]
    if recipe.weights not in CASTS:
        tensors = {name: narrowed(tensor) for name, tensor in tensors.items()}
    modules = {
        _module(name, convs): {
            "bits": bits(state[name]),
            "group_size": math.prod(state[name].block_size),
            "scheme": type(state[name]).__name__,
            "parameters": state[name].numel(),
            "bytes": sum(tensors[key].nbytes for key in keys),
        }
        for name, keys in parts.items()
    }
    total = sum(p.numel() for p in model.parameters())
    tensor_bytes = sum(tensor.nbytes for tensor in tensors.values())
    quantized_bytes = sum(module["bytes"] for module in modules.values())
    info = {
        **({"run": run} if run else {}),
        "parameters": total,
        "float32_bytes": float32_bytes,
        "quantized_fraction": sum(module["parameters"] for module in modules.values()) / total,
        "bytes": {"quantized": quantized_bytes, "rest": tensor_bytes - quantized_bytes, "total": tensor_bytes},
        "linear_convs": convs,
        "modules": modules,
        "packed": packed,
        "tensors": metadata,
    }
    with replacing(folder) as part:
        part.mkdir()
        model.config.save_pretrained(part)
        save_preprocessor(part, baseline)
        # safetensors' save_file would make the file readable by its owner only.
        write_bytes(part / "model.safetensors", save({k: v.contiguous() for k, v in sorted(tensors.items())}))
        seal(part, recipe, info)


def save_missing(recipe: Method, reason: Mapping[str, str], folder: str | Path) -> None:
    """Write the artifact of a method without a model: the recipe and the reason, as `failures.missing` gives it."""
    with replacing(folder) as part:
        part.mkdir()
        seal(part, recipe, dict(reason))


def seal(folder: Path, recipe: Method, info: dict[str, Any]) -> None:
    """Write quantization.json: format, recipe, `info`, a digest of each other file in `folder`, and one of itself."""
    files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    whole = {"format": FORMAT, "recipe": asdict(recipe), **info, **({"files": files} if files else {})}
    write_json(folder / "quantization.json", {**whole, "digest": digest(whole)})


def describe_artifact(folder: str | Path) -> dict[str, Any]:
    """Read an artifact's quantization.json. Raises ModelError when it is missing, changed or of another format."""
    path = Path(folder) / "quantization.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a quantized model: it has no quantization.json; give another folder")
    info = read_json(path)
    _check_format(path, info.get("format") if isinstance(info, dict) else None)
    if info.pop("digest", None) != digest(info):
        raise ModelError(f"{path} is not as it was written: quantize again")
    kinds = {"recipe": dict}
    if not missing(info):
        kinds |= {"files": dict}
        if isinstance(info.get("recipe"), dict) and "engine" not in info["recipe"]:
            kinds |= {"linear_convs": list, "modules": dict, "packed": dict, "tensors": dict}
    for key, kind in kinds.items():
        if not isinstance(info.get(key), kind):
            raise ModelError(f"{path} has no '{key}' as segquant writes it: quantize again")
    names = info.get("files", {})
    if not missing(info) and ("config.json" not in names or any(Path(name).name != name for name in names)):
        raise ModelError(f"{path} lists other files than segquant writes: quantize again")
    return info


def _check_format(path: Path, stored: Any) -> None:
    """Raise ModelError for any format but FORMAT, with what to do about a newer, an older and an unknown one."""
    if stored == FORMAT:
        return
    number = re.fullmatch(r"segquant-([0-9]{1,9})", stored) if isinstance(stored, str) else None
    if not number:
        raise ModelError(f"{path} names no format of segquant's: quantize again")
    remedy = "quantize again"
    if int(number[1]) > int(FORMAT.removeprefix("segquant-")):
        remedy = "update segquant, whose changelog says which version reads it"
    raise ModelError(f"{path} has format {stored}, and segquant {segquant.__version__} reads {FORMAT}: {remedy}")


def check_present(folder: str | Path, info: Mapping[str, Any]) -> None:
    """Raise UnavailableError or ModelError for an artifact without a model, as `save_missing` writes it."""
    reason = missing(info)
    if "unavailable" in reason:
        raise UnavailableError(reason["unavailable"])
    if reason:
        raise ModelError(f"{folder} holds no model, as the method failed: {reason['failed']}")


def intact(folder: str | Path, info: dict[str, Any]) -> None:
    """Raise ModelError unless every file that `info` (quantization.json) lists is in `folder` and unchanged."""
    for name, expected in info["files"].items():
        path = Path(folder) / name
        if not path.is_file() or sha256(path) != expected:
            raise ModelError(f"{path} is missing or not as it was written: quantize again")


def load_artifact(folder: str | Path, device: torch.device | str = "cpu") -> Artifact:
    """Load an artifact; its logits are bit-identical to those of the saved model. Logs time and memory.

    Raises UnavailableError when the machine that made the artifact could not run its method, and ModelError for a
    folder that is not an artifact or is damaged, or whose method failed.
    """
    folder = Path(folder)
    info = describe_artifact(folder)
    check_present(folder, info)
    if "engine" in info["recipe"]:
        raise ModelError(f"{folder} is a graph for {info['recipe']['engine']}: segquant.load_quantized runs it")
    start, memory_before = time.perf_counter(), psutil.Process().memory_info().rss
    intact(folder, info)
    check_config(folder, folder)
    path = folder / "model.safetensors"
    try:
        state = _unpack({name: aligned(tensor) for name, tensor in load_file(path).items()}, info)
        with no_init_weights():
            model = AutoModelForSemanticSegmentation.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False)
            )
        rewrite(model, info["linear_convs"])
        model.load_state_dict(state, assign=True)
        compute_in_bfloat16(model)
    except Exception as error:  # safetensors, torch and transformers raise many types
        message = one_line(error)
        raise ModelError(f"{folder} cannot be loaded: {message}; quantize again") from error
    model = model.to(device).eval().requires_grad_(False)
    _check_codes(folder, state)
    seconds, size = time.perf_counter() - start, path.stat().st_size
    memory = psutil.Process().memory_info().rss - memory_before
    log.info("loaded %s: %.2f MB on disk, %.2f s, %+.1f MB memory", folder, size / 1e6, seconds, memory / 1e6)
    return Artifact(model, info, size, seconds)


def _check_codes(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ModelError for codes that no algorithm writes, which load and fail when the model runs."""
    for name, tensor in state.items():
        dtype = getattr(getattr(tensor, "qdata", None), "dtype", torch.int8)
        if dtype not in (torch.int8, torch.float8_e4m3fn):
            raise ModelError(f"{folder} has codes of {name} as {dtype_name(dtype)}: quantize again")


def load_quantized(
    source: str | Path,
    device: torch.device | str = "cpu",
    *,
    revision: str | None = None,
    sha256: str | None = None,
) -> nn.Module:
    """Load a quantized model in eval mode from a folder, a hub id or an https URL (see `hub.locate`).

    It takes pixels of any float type. Raises the errors of `load_artifact` and `locate`.
    """
    return takes_floats(load_artifact(locate(source, revision, sha256), device).model)


def takes_floats(model: nn.Module) -> nn.Module:
    """Let a model take pixels of another float type than its own, as image processors give them; return the model."""

    def cast(model: nn.Module, args: tuple, options: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        dtype = next(model.parameters()).dtype
        args, values = (
            [v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for v in values]
            for values in (args, options.values())
        )
        return tuple(args), dict(zip(options, values))

    model.register_forward_pre_hook(cast, with_kwargs=True)
    return model


def _key(name: str, part: str) -> str:
    """torchao's key for a part of a flattened tensor: `a.b.weight`, `qdata` -> `a.b._weight_qdata`."""
    module, leaf = name.rsplit(".", 1)
    return f"{module}._{leaf}_{part}"


def _module(name: str, convs: list[str]) -> str:
    """The float model's name for a weight's layer: a LinearConv2d's own name, not that of the Linear inside it."""
    module = name.removesuffix(".weight")
    return module.removesuffix(".linear") if module.removesuffix(".linear") in convs else module


def _pack(tensors: dict[str, torch.Tensor], keys: list[str], width: int) -> dict[str, dict[str, Any]]:
    """Pack the codes among `tensors[keys]` and drop all-zero zero points, in place; return how to undo it."""
    packed = {}
    for key in keys:
        if key.endswith("_zero_point") and not tensors[key].any():
            packed[key] = {"zeros": list(tensors[key].shape), "dtype": dtype_name(tensors.pop(key).dtype)}
        elif key.endswith("_qdata") and width < 8:
            packed[key] = {"bits": width, "shape": list(tensors[key].shape)}
            tensors[key] = pack(tensors[key], width)
    return packed


def _unpack(tensors: dict[str, torch.Tensor], info: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Reverse `_pack`, the rounding to float16 and torchao's flattening."""
    if info["recipe"]["weights"] not in CASTS:
        tensors = {k: v.float() if v.dtype == torch.float16 else v for k, v in tensors.items()}
    largest = 8 * max((tensor.numel() for tensor in tensors.values()), default=0)
    for key, entry in info["packed"].items():
        if "zeros" in entry:
            if math.prod(entry["zeros"]) > largest:
                raise ModelError(f"quantization.json has more zeros in {key} than the model has weights")
            tensors[key] = torch.zeros(entry["zeros"], dtype=getattr(torch, entry["dtype"]))
        else:
            tensors[key] = unpack(tensors[key], entry["bits"], tuple(entry["shape"]))
    state, leftover = unflatten_tensor_state_dict(tensors, info["tensors"])
    if leftover:
        raise ModelError(f"model.safetensors has tensors that quantization.json does not name: {sorted(leftover)[:3]}")
    return state
