"""Load and save a float model in a folder with config.json and model.safetensors. base/hub.py finds the folder."""

from __future__ import annotations

import logging
import os
import pickle
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)
from transformers.utils import logging as transformers_logging

from segquant.base.errors import ModelError, SegquantError, one_line
from segquant.base.files import is_lfs_pointer
from segquant.base.hub import files
from segquant.base.repository import called
from segquant.base.skeleton import Stored, headers, read_config, size_of, skeleton
from segquant.base.validate import shown
from segquant.data.preprocessing import PREPROCESSOR, read_preprocessing

log = logging.getLogger(__name__)
_COUNTERS = ("num_batches_tracked", "position_ids", "relative_position_index")  # without them results are the same
_KERNEL = re.compile(r"_?(attn|experts)_implementation(_internal)?")  # keys of config.json
MAX_CLASSES = 255  # class maps are uint8, and 255 means ignore
transformers_logging.disable_progress_bar()  # a folder loads and saves in a moment
transformers_logging.set_verbosity_error()  # what it warns of, `load` refuses in one line


def new_segformer_b0(names: Sequence[str]) -> nn.Module:
    """A SegFormer-B0 with random weights and the configuration of nvidia/segformer-b0-finetuned-ade-512-512."""
    config = SegformerConfig(
        depths=[2, 2, 2, 2],
        hidden_sizes=[32, 64, 160, 256],
        num_attention_heads=[1, 2, 5, 8],
        decoder_hidden_size=256,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    return SegformerForSemanticSegmentation(config)


def load(source: str | Path) -> nn.Module:
    """Load a float model as float32, in eval mode, without gradients; log its load time and memory.

    `source` is a folder with config.json and model.safetensors, or a pytorch_model.bin that holds only tensors; either
    one may be in shards with an index. An error calls a folder in the hub's cache by its hub id. A model of one class,
    which a sigmoid decides on, becomes one of two (`two_classes`). Raises ModelError when the model is missing, broken,
    quantized, no segmentation model, or when its input, classes or weights are such that every figure would be wrong.
    """
    folder, source = Path(source), called(source)
    paths = files(folder)
    if any(path.name == "quantization.json" for path in paths):
        raise ModelError(f"model '{source}' is already quantized: give the float model that it was made from")
    try:
        pointer = next((path.name for path in paths if is_lfs_pointer(path)), None)
    except OSError as error:
        raise ModelError(f"model '{source}' has {error.filename}, which cannot be read: {error.strerror}") from error
    if pointer:
        raise ModelError(f"model '{source}' has a Git LFS pointer in place of {pointer}: run git lfs pull")
    check_config(source, folder)
    read_preprocessing(folder)  # raises before any data are read
    start, before = time.perf_counter(), psutil.Process().memory_info().rss
    try:
        tensors = headers(paths)
        _check_dtypes(source, tensors)
        skeleton(source, folder, tensors)
        model, report = AutoModelForSemanticSegmentation.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # _check_weights says which
        )
    except pickle.UnpicklingError as error:
        raise ModelError(f"model '{source}' is unsafe: its pickle can run code; save it as safetensors") from error
    except SegquantError:
        raise
    except Exception as error:  # transformers and safetensors raise many types of exception
        raise ModelError(f"model '{source}' cannot be loaded: {one_line(error)}") from error
    _check_weights(source, model, report)
    model.config.return_dict, model.config.output_attentions, model.config.output_hidden_states = True, False, False
    check_runs(source, model)
    if model.config.num_labels == 1:
        two_classes(source, model)
    count = sum(p.numel() for p in model.parameters())
    grown = psutil.Process().memory_info().rss - before
    log.info(
        "loaded %s: %s, %s parameters, %.2f s, %+.1f MB",
        source,
        type(model).__name__,
        f"{count:,}",
        time.perf_counter() - start,
        grown / 1e6,
    )
    # Where a weight requires gradients, matmul takes a different path and the last bits differ.
    return model.eval().requires_grad_(False)


def check_config(source: str | Path, folder: Path) -> None:
    """Raise ModelError for a model that is not one of segmentation, takes no RGB, or names its classes amiss."""
    config = read_config(source, folder)
    architectures = config.get("architectures") or []
    architectures = architectures if isinstance(architectures, list) else [architectures]
    known = isinstance(config.get("model_type"), str) and config["model_type"] in CONFIG_MAPPING
    if not known and config.get("auto_map"):
        raise ModelError(
            f"model '{source}' brings code of its own (auto_map), and no code of a model is run: choose another"
        )
    if config.get("quantization_config"):
        raise ModelError(f"model '{source}' is already quantized: give the float model that it was made from")
    if architectures and not any("Segmentation" in str(kind) for kind in architectures):
        raise ModelError(f"model '{source}' is a {str(architectures[0])[:100]}: give a model for semantic segmentation")
    if not known:
        raise ModelError(
            f"model '{source}' is of the type {shown(config.get('model_type'))}, which transformers "
            f"{transformers.__version__} does not know: give a model for semantic segmentation"
        )
    for part in (config, config.get("backbone_config") or {}):
        if isinstance(part, dict) and part.get("num_channels", 3) != 3:
            raise ModelError(f"model '{source}' takes {shown(part['num_channels'])} channels: only RGB images work")
    for key, value in _entries(config):
        # transformers would fetch a kernel by this name from the hub, and run it, or read other weights than we check
        kernel = _KERNEL.fullmatch(key) and value not in (None, "eager", "sdpa")
        if kernel or (key == "transformers_weights" and value is not None):
            raise ModelError(f"model '{source}' has {key} {shown(value)} in config.json: remove it")
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if not isinstance(count, int) or not 1 <= count <= MAX_CLASSES:
        raise ModelError(f"model '{source}' has {shown(count)} classes: 1 to {MAX_CLASSES} work")
    if labels is None:
        return
    if not isinstance(labels, dict) or set(labels) != set(map(str, range(len(labels)))):
        raise ModelError(f"model '{source}' has an id2label in config.json whose ids are not 0, 1, 2, ... without gaps")
    if others := [name for name in labels.values() if not isinstance(name, str)]:
        raise ModelError(f"model '{source}' names a class {shown(others[0])} in its config.json: give it a text")
    check_names(source, labels.values())


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every object in a value of JSON."""
    for name, part in value.items() if isinstance(value, dict) else ():
        yield name, part
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _entries(part)


def check_names(source: str | Path, names: Iterable[Any]) -> None:
    """Raise ModelError where two classes of a model have one name."""
    twice = [name for name, count in Counter(map(str, names)).items() if count > 1]
    if twice:
        raise ModelError(f"model '{source}' names two classes '{twice[0]}': rename one in id2label of its config.json")


def _check_dtypes(source: str | Path, tensors: Mapping[str, Stored]) -> None:
    """Raise ModelError for weights that are whole or complex numbers, such as codes whose scales are elsewhere."""
    for name, tensor in tensors.items():
        if not tensor.floats and not name.endswith(_COUNTERS):
            raise ModelError(f"model '{source}' has {name} as {tensor.dtype}: only float weights work")


def _check_weights(source: str | Path, model: nn.Module, report: dict[str, Any]) -> None:
    """Raise ModelError for weights that are not those of config.json, or are no numbers. `report` is transformers'."""
    for name, given, expected in sorted(report["mismatched_keys"]):
        sizes = f"{list(given)} in the file and {list(expected)} by config.json"
        raise ModelError(f"model '{source}' does not fit its config.json: {name} is {sizes}")
    missing, surplus = (
        sorted(name for name in map(str, report[key]) if not name.endswith(_COUNTERS))
        for key in ("missing_keys", "unexpected_keys")
    )
    if missing or surplus:
        lacks = [f"lacks {missing[0]}"] if missing else []
        parts = lacks + ([f"has {surplus[0]}, which has no place"] if surplus else [])
        raise ModelError(f"model '{source}' does not fit its config.json: the file {' and '.join(parts)}")
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ModelError(
                f"model '{source}' has NaN or infinity in {key}: its training failed, or the file is damaged"
            )


@torch.inference_mode()
def check_runs(source: str | Path, model: nn.Module) -> None:
    """Raise ModelError unless a model in eval mode gives logits (1, classes, h, w), all of them numbers, of an image.

    It is of 64x64 pixels, or of the size that the model was configured for where it takes no other.
    """
    try:
        try:
            logits = model(_noise(model, 64, 64)).logits
        except Exception:
            logits = model(noise(model)).logits
        fits = logits.ndim == 4 and logits.shape[:2] == (1, model.config.num_labels) and logits.numel() > 0
    except Exception as error:  # models raise many types
        reason = one_line(error)
        raise ModelError(f"model '{source}' does not run: {reason}; fetch it again, or choose another") from error
    if not fits:
        raise ModelError(
            f"model '{source}' gives {list(logits.shape)}: logits (B, {model.config.num_labels}, h, w) work"
        )
    if not logits.isfinite().all():
        raise ModelError(f"model '{source}' gives logits that are no numbers: train it again or fetch the file again")


@torch.no_grad()
def two_classes(source: str | Path, model: nn.Module) -> None:
    """Make a model of one class, above zero where a pixel belongs to it, one of two, in place: (0, logit).

    The larger of the two logits is the same decision, also after bilinear upsampling, which keeps zeros. Raises
    ModelError where the layer that gives the logit is not found.
    """
    config, image = model.config, noise(model)
    logit = model(image).logits
    for name, layer in model.named_modules():
        if "head" in name and isinstance(layer, nn.Conv2d) and layer.out_channels == 1 and layer.groups == 1:
            layer.weight = nn.Parameter(torch.cat([torch.zeros_like(layer.weight), layer.weight]))
            if layer.bias is not None:
                layer.bias = nn.Parameter(torch.cat([torch.zeros_like(layer.bias), layer.bias]))
            layer.out_channels = 2
    both = model(image).logits
    expected = torch.cat([torch.zeros_like(logit), logit], dim=1)
    if both.shape != expected.shape or not torch.allclose(both, expected, rtol=1e-4, atol=1e-5):
        raise ModelError(f"model '{source}' has one class, and its last layer is not found: give it two classes")
    name = config.id2label[0]
    other = "LABEL_1" if name == "LABEL_0" else "other" if name == "background" else "background"
    config.id2label = {0: "LABEL_0", 1: other} if name == "LABEL_0" else {0: other, 1: name}
    config.label2id = {name: i for i, name in config.id2label.items()}
    log.info("%s has one class: it becomes two, %s where its logit is above zero", source, config.id2label[1])


def noise(model: nn.Module) -> torch.Tensor:
    """A fixed image of noise (1, 3, H, W), of the size that the model was configured for (`size_of`)."""
    return _noise(model, *size_of(model))


def _noise(model: nn.Module, height: int, width: int) -> torch.Tensor:
    parameter = next(model.parameters())
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    return image.to(parameter.device, parameter.dtype)


def save(
    model: nn.Module,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    size: int = 512,
    baseline: str | Path | None = None,
) -> None:
    """Save config.json, preprocessor_config.json (see save_preprocessor) and model.safetensors, floats as `dtype`."""
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict={k: v.contiguous() for k, v in state.items()})
    save_preprocessor(folder, baseline, size)


def save_preprocessor(folder: str | Path, baseline: str | Path | None = None, size: int = 512) -> None:
    """Copy the baseline's preprocessor_config.json; without one, write ImageNet's normalization at `size` squared."""
    original = Path(baseline) / PREPROCESSOR if baseline else None
    if original and original.is_file():
        shutil.copyfile(original, Path(folder) / PREPROCESSOR)
    else:
        processor = SegformerImageProcessorPil(do_reduce_labels=False, size={"height": size, "width": size})
        processor.save_pretrained(folder)


def device(choice: str = "auto") -> torch.device:
    """The device for `choice`: `cpu`, `cuda`, or `auto` (CUDA if there is a GPU, else the CPU).

    Under torchrun each process of a machine gets its own GPU. Raises ModelError for `cuda` without a GPU.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda' is unavailable because torch finds no CUDA device: use 'auto' or 'cpu'")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
