"""Save and load a quantized model: config.json, preprocessor_config.json, quantization.json, model.safetensors.

model.safetensors holds torchao's tensors, flattened: codes below 8 bits are packed to their true width, floats are
stored as float16 where that is exact, and zero points that are all zero are omitted. quantization.json holds the
metadata from which torchao rebuilds the tensors, and a digest of each file, which reveals any change. (The header of a
safetensors file could hold the metadata too, but its order is not stable, and artifacts must be reproducible.)
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation
from transformers.initialization import no_init_weights

import segquant
from segquant.base.allocator import aligned
from segquant.base.config import Auto, Method, Recipe, as_mapping, build
from segquant.base.errors import ConfigError, ModelError, SegquantError, UnavailableError, one_line
from segquant.base.failures import missing
from segquant.base.files import digest, read_json, replacing, sha256, write_bytes, write_json
from segquant.base.hub import CONFIGS, locate
from segquant.base.skeleton import headers, skeleton
from segquant.base.weights import SAFETENSORS
from segquant.models import check_config, check_runs, save_preprocessor
from segquant.quant.coverage import LinearConv2d, rewrite
from segquant.quant.flat import check_state, state_of
from segquant.quant.float8 import compute_in_bfloat16
from segquant.quant.stored import file_bytes, stored
from segquant.quant.tensors import CASTS, bits

log = logging.getLogger(__name__)
FORMAT = "segquant-3"  # another number when older versions cannot read it; CHANGELOG.md says which version writes it
QUANTIZATION = "quantization.json"


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact: the model in eval mode and the content of quantization.json."""

    model: nn.Module
    info: dict[str, Any]
    size_bytes: int
    load_seconds: float


def save_quantized(
    model: nn.Module,
    recipe: Recipe | Auto,
    folder: str | Path,
    baseline: str | Path,
    float32_bytes: int,
    run: str | None = None,
    allocation: Mapping[str, Any] | None = None,
) -> None:
    """Write a model that `recipes.quantize` has quantized; the folder appears complete or not at all.

    `baseline` is the folder whose preprocessor_config.json is copied, `float32_bytes` the size of the float32
    safetensors file to compare with, `run` the name of the training that made the model, if any, and `allocation` why
    its layers have these bits, for a recipe that leaves them open.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    tensors, metadata, packed, parts = stored(state, recipe.weights in CASTS)
    convs = [name for name, m in model.named_modules() if isinstance(m, LinearConv2d)]
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
        **({"allocation": allocation} if allocation else {}),
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
        write_bytes(part / SAFETENSORS, file_bytes(tensors))
        seal(part, recipe, info)


def save_missing(recipe: Method, reason: Mapping[str, str], folder: str | Path) -> None:
    """Write the artifact of a method without a model: the recipe and the reason, as `failures.missing` gives it."""
    with replacing(folder) as part:
        part.mkdir()
        seal(part, recipe, dict(reason))


def seal(folder: Path, recipe: Method, info: dict[str, Any]) -> None:
    """Write quantization.json: format, recipe, `info`, a digest of each other file in `folder`, and one of itself."""
    files = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    whole = {"format": FORMAT, "recipe": as_mapping(recipe), **info, **({"files": files} if files else {})}
    write_json(folder / "quantization.json", {**whole, "digest": digest(whole)})


def describe_artifact(folder: str | Path) -> dict[str, Any]:
    """Read an artifact's quantization.json. Raises ModelError when it is missing, changed or of another format."""
    path = Path(folder) / "quantization.json"
    if not path.is_file():
        raise ModelError(f"{folder} is not a quantized model: it has no quantization.json; give another folder")
    try:
        info = read_json(path)
    except SegquantError as error:
        raise ModelError(f"{error}: quantize again") from error
    _check_format(path, info.get("format") if isinstance(info, dict) else None)
    if info.pop("digest", None) != digest(info):
        raise ModelError(f"{path} is not as it was written: quantize again")
    for key, expected in _kinds(info).items():
        if type(info.get(key)) not in expected:
            raise ModelError(f"{path} has no '{key}' as segquant writes it: quantize again")
    try:
        for key in as_mapping(build(Method, info["recipe"], "recipe")):
            if key not in info["recipe"]:
                raise ConfigError(f"recipe lacks the key '{key}'")
    except ConfigError as error:
        raise ModelError(f"{path} has no 'recipe' as segquant writes it ({error}): quantize again") from error
    if missing(info):
        return info
    names = info["files"]
    if "config.json" not in names or any(Path(name).name != name for name in names):
        raise ModelError(f"{path} lists other files than segquant writes: quantize again")
    if info["parameters"] < 1 or info["float32_bytes"] < 1 or not 0 <= info["quantized_fraction"] <= 1:
        raise ModelError(f"{path} has counts of weights that no model has: quantize again")
    return info


def _kinds(info: Mapping[str, Any]) -> dict[str, tuple[type, ...]]:
    """The keys of a quantization.json that are read later, and the types that they may have."""
    if reason := missing(info):
        return {"recipe": (dict,), **{key: (str,) for key in reason}}
    kinds = {
        "recipe": (dict,),
        "files": (dict,),
        "parameters": (int,),
        "float32_bytes": (int,),
        "quantized_fraction": (int, float),
    }
    recipe = info.get("recipe")
    if isinstance(recipe, dict) and "engine" in recipe:
        return kinds | ({"algorithm": (str,)} if "from" in recipe else {})
    return kinds | {
        "bytes": (dict,),
        "linear_convs": (list,),
        "modules": (dict,),
        "packed": (dict,),
        "tensors": (dict,),
    }


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
    for name in (*CONFIGS, SAFETENSORS):
        if name not in info["files"] and name != QUANTIZATION and (Path(folder) / name).exists():
            raise ModelError(f"{Path(folder) / name} has no digest in {QUANTIZATION}: remove it, or quantize again")


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
    path = folder / SAFETENSORS
    try:
        stored = headers([path])
    except Exception as error:  # as safetensors raises
        raise ModelError(f"{folder} cannot be loaded: {one_line(error)}; quantize again") from error
    empty = skeleton(folder, folder, stored, codes=8)  # a byte holds 8 codes at most
    try:
        rewrite(empty, info["linear_convs"])
        state = state_of({name: aligned(tensor) for name, tensor in load_file(path).items()}, info)
        check_state(state, empty.state_dict(), info["recipe"]["weights"])
        with no_init_weights():
            model = AutoModelForSemanticSegmentation.from_config(
                AutoConfig.from_pretrained(folder, trust_remote_code=False)
            )
        rewrite(model, info["linear_convs"])
        model.load_state_dict(state, assign=True)
        compute_in_bfloat16(model)
    except Exception as error:  # safetensors, torch and transformers raise many types
        raise ModelError(f"{folder} cannot be loaded: {one_line(error)}; quantize again") from error
    model = model.to(device).eval().requires_grad_(False)
    seconds, size = time.perf_counter() - start, path.stat().st_size
    memory = psutil.Process().memory_info().rss - memory_before
    log.info("loaded %s: %.2f MB on disk, %.2f s, %+.1f MB memory", folder, size / 1e6, seconds, memory / 1e6)
    if info["recipe"].get("activations") != "float8" or next(model.parameters()).is_cuda:  # kernels of a GPU
        check_runs(folder, model)
    return Artifact(model, info, size, seconds)


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


def _module(name: str, convs: list[str]) -> str:
    """The float model's name for a weight's layer: a LinearConv2d's own name, not that of the Linear inside it."""
    module = name.removesuffix(".weight")
    return module.removesuffix(".linear") if module.removesuffix(".linear") in convs else module
