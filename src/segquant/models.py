"""Load and save a float model in a folder with config.json and model.safetensors. base/hub.py finds the folder."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
)
from transformers.utils import logging as transformers_logging

from segquant.base.errors import ModelError, one_line
from segquant.base.files import read_json
from segquant.base.hub import files
from segquant.base.repository import called
from segquant.data.protocols import IMAGENET, Normalization

log = logging.getLogger(__name__)
PREPROCESSOR = "preprocessor_config.json"
MAX_CLASSES = 255  # class maps are uint8, and 255 means ignore
transformers_logging.disable_progress_bar()  # a folder loads and saves in a moment


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
    one may be in shards with an index. An error calls a folder in the hub's cache by its hub id.
    Raises ModelError when the model is missing, broken, quantized, or not a segmentation model.
    """
    folder, source = Path(source), called(source)
    if any(path.name == "quantization.json" for path in files(folder)):
        raise ModelError(f"model '{source}' is already quantized: give the float model that it was made from")
    start, before = time.perf_counter(), psutil.Process().memory_info().rss
    try:
        model, report = AutoModelForSemanticSegmentation.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except pickle.UnpicklingError as error:
        raise ModelError(f"model '{source}' is unsafe: its pickle can run code; save it as safetensors") from error
    except Exception as error:  # transformers and safetensors raise many types of exception
        raise ModelError(f"model '{source}' cannot be loaded: {one_line(error)}") from error
    problems = {k: sorted(map(str, v))[:3] for k, v in report.items() if v and k in ("missing_keys", "mismatched_keys")}
    if problems:
        raise ModelError(f"model '{source}' does not fit its config.json: {problems}")
    if model.config.num_labels > MAX_CLASSES:
        raise ModelError(f"model '{source}' has {model.config.num_labels} classes: at most {MAX_CLASSES} work")
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


def normalization(folder: str | Path) -> Normalization:
    """Mean and standard deviation in a model's preprocessor_config.json; ImageNet's where that file is missing."""
    path = Path(folder) / PREPROCESSOR
    if not path.is_file():
        return IMAGENET
    settings = read_json(path)
    return tuple(settings.get("image_mean", IMAGENET[0])), tuple(settings.get("image_std", IMAGENET[1]))


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
