"""What a config.json asks for, held against the weights beside it before memory is taken for any of it.

A model from a stranger may ask for a million layers beside weights of a kilobyte. The header of a safetensors file
gives every tensor's shape without its values, and PyTorch's meta device builds a model without memory.
"""

from __future__ import annotations

import math
import re
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn
from torch.nn.modules import module as hooks
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoModelForSemanticSegmentation,
)
from transformers.initialization import no_init_weights

from segquant.base.errors import ModelError, SegquantError, one_line
from segquant.base.files import read_json
from segquant.base.validate import shown

_LARGEST = 1 << 20  # bytes of a config.json; one of 255 classes has 20 kB
_MOST = 100_000  # of a whole number in it, and of a list's together: they count channels, layers and pixels
_LAYERS = re.compile("depths|layers")  # keys that count layers, and make lists as long before the first is built
_USUAL = 512  # a larger number that is no side of a weight is tried on the meta device, which takes half a second
_MOST_OUTPUTS = 1 << 28  # numbers that a layer may give for an image: 1 GB
_MOST_SIDE = 2048  # pixels of the image that a model is tried with


class Stored(NamedTuple):
    """A tensor as its file's header describes it; `dtype` is a name, such as F32 or float32."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)

    @property
    def floats(self) -> bool:
        return self.dtype.lower().startswith(("f", "bf"))


def headers(paths: Iterable[Path]) -> dict[str, Stored]:
    """The tensors in the safetensors files and pickles among `paths`, without their values.

    Raises what safetensors and PyTorch do for a broken or unsafe file.
    """
    tensors: dict[str, Stored] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                parts = {name: file.get_slice(name) for name in file.keys()}
                tensors |= {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
        elif path.suffix == ".bin":
            state = torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path) or None)
            tensors |= {
                name: Stored(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
                for name, tensor in (state.items() if isinstance(state, dict) else ())
                if isinstance(tensor, torch.Tensor)
            }
    return tensors


def read_config(source: str | Path, folder: Path) -> dict[str, Any]:
    """A model's config.json. Raises ModelError for one that is no object, or whose size or numbers no model has."""
    path = folder / "config.json"
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise ModelError(f"model '{source}' has a config.json of {path.stat().st_size} bytes: {_LARGEST} work")
    try:
        config = read_json(path)
    except SegquantError as error:
        raise ModelError(f"model '{source}' cannot be loaded: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"model '{source}' has a config.json that is no JSON object")
    for key, number in _numbers({**config, "num_labels": None}, sums=True):  # which has a limit of its own
        if abs(number) > _MOST:
            raise ModelError(f"model '{source}' has {key} {shown(number)} in config.json: at most {_MOST} works")
    return config


def _numbers(value: Any, sums: bool = False, key: str = "") -> Iterator[tuple[str, int]]:
    """(key, number) for all whole numbers in a value of JSON, with `sums` for that of each list too."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(part, sums, shown(str(name)))
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, sums, key)
        if sums:
            yield key, sum(abs(part) for part in value if isinstance(part, int))
    elif isinstance(value, int):
        yield key, value


def skeleton(source: str | Path, folder: Path, tensors: Mapping[str, Stored], codes: int = 1) -> nn.Module:
    """The model of the config.json in `folder` on the meta device, where it takes no memory, with no weights.

    `tensors` are those in its file, and each number of them stands for up to `codes` weights. transformers knows its
    model_type (`models.check_config`). Raises ModelError for a config.json that transformers cannot follow, or whose
    model has far more weights than the file.
    """
    config = read_config(source, folder)
    weights = codes * sum(tensor.numbers for tensor in tensors.values())
    sides = {side for tensor in tensors.values() for side in tensor.shape}
    kind, most = config["model_type"], 4 * len(tensors) + 100  # some are split as they load, others left out
    if any(number > most and _LAYERS.search(key) for key, number in _numbers(config)):
        raise _larger(source)
    try:
        if CONFIG_MAPPING[kind] not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
            raise ModelError(f"model '{source}' is of the type {shown(kind)}: give a model for semantic segmentation")
        described = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with _counted(source, most, 4 * weights + 1_000_000), no_init_weights(), torch.device("meta"):
            model = AutoModelForSemanticSegmentation.from_config(described, trust_remote_code=False).eval()
    except SegquantError:
        raise
    except Exception as error:  # transformers and torch raise many types
        raise ModelError(
            f"model '{source}' has a config.json that no model can be made from ({one_line(error)}): fetch it again"
        ) from error
    if any(number > _USUAL and number not in sides for _, number in _numbers(config)):
        _check_outputs(source, model)
    return model


def _larger(source: str | Path) -> ModelError:
    return ModelError(f"model '{source}' has a config.json of a far larger model than its weights: fetch both again")


@contextmanager
def _counted(source: str | Path, most: int, most_numbers: int) -> Iterator[None]:
    """Raise ModelError as soon as this thread has made more than `most` parameters and buffers, or numbers in them."""
    thread, count, numbers = threading.get_ident(), 0, 0

    def register(_module: nn.Module, _name: str, tensor: torch.Tensor | None) -> None:
        nonlocal count, numbers
        if tensor is None or threading.get_ident() != thread:
            return
        count, numbers = count + 1, numbers + tensor.numel()
        if count > most or numbers > most_numbers:
            raise _larger(source)

    handles = [
        hooks.register_module_parameter_registration_hook(register),
        hooks.register_module_buffer_registration_hook(register),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_outputs(source: str | Path, model: nn.Module) -> None:
    """Raise ModelError where a layer of a model on the meta device would give more than `_MOST_OUTPUTS` numbers."""

    def check(layer: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.numel() > _MOST_OUTPUTS:
            name = next(name for name, other in model.named_modules() if other is layer)
            raise ModelError(
                f"model '{source}' would give {output.numel():,} numbers in {name} for one small image: look for the "
                "number in config.json that is too large"
            )

    handles = [layer.register_forward_hook(check) for layer in model.modules()]
    try:
        with torch.no_grad():
            model(torch.empty(1, 3, *size_of(model), device="meta"))
    except ModelError:
        raise
    except Exception:  # it may not run on the meta device; whether it runs is tried with the weights
        pass
    finally:
        for handle in handles:
            handle.remove()


def size_of(model: nn.Module) -> tuple[int, int]:
    """The (height, width) that a model was configured for, in pixels; 64x64 where it is none or too large to try."""
    size = getattr(model.config, "image_size", None)
    size = [size, size] if isinstance(size, int) else size
    fits = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
    return tuple(size) if fits and all(0 < side <= _MOST_SIDE for side in size) else (64, 64)
