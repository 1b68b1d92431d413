"""Baseline and graph recipe in, verified artifact out: what a quantize stage does for the methods with an engine."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from segquant import models
from segquant.base.config import Graph, Packed
from segquant.base.errors import DataError
from segquant.base.files import replacing, write_bytes
from segquant.base.ranks import ranks
from segquant.data.preprocessing import read_preprocessing
from segquant.deploy.graph import exported, to_onnx
from segquant.deploy.openvino_int8 import quantize_nncf
from segquant.deploy.pt2e import calibrated
from segquant.deploy.qdq import Score, quantize_qdq
from segquant.engines.extras import exports_lack, needs, unavailable
from segquant.engines.load import load
from segquant.engines.openvino import core
from segquant.quant.artifacts import save_missing, seal
from segquant.quant.tensors import finite

# (float model, calibration images[, layers whose weights stay as they are]) -> a quantized graph
Fit = Callable[..., nn.Module]


def build_graph(
    source: str | Path,
    recipe: Graph,
    folder: str | Path,
    exports: str | Path,
    images: torch.Tensor | None = None,
    score: Score | None = None,
    fit: Fit = calibrated,
    run: str | None = None,
) -> dict[str, Any]:
    """Make the artifact `folder` of a graph: model.onnx or model.xml and model.bin, config.json and quantization.json.

    `exports` is what `export_onnx` wrote of the baseline at `source`; `images` (N, 3, H, W) are calibrated on, `score`
    gives points of mIoU where max_drop is to be kept; `fit` is what algorithm pt2e does, which else calibrates. Gives
    what `quant.build.build` gives. Raises DataError without images, ModelError for an artifact that does not run.
    """
    reason = {"unavailable": words} if (words := unavailable(recipe)) else {}
    if not reason and recipe.algorithm != "pt2e":
        reason = exports_lack(exports, "float32" if recipe.weights == "int8" else recipe.weights)
    if reason:
        save_missing(recipe, reason, folder)
        return reason
    needs_images(recipe, images)
    model, float32 = models.load(source), Path(exports) / "float32.onnx"
    parameters = sum(p.numel() for p in model.parameters())
    size = len(save({k: v.contiguous() for k, v in model.state_dict().items()}))
    start, details = time.perf_counter(), {}
    graph = fit(model, images) if recipe.algorithm == "pt2e" else None
    if ranks()[0]:  # the first of the processes that trained together writes
        return {}
    with replacing(folder) as part:
        part.mkdir()
        target = part / "model.onnx"
        if graph is not None:
            written = to_onnx(exported(graph), model.config, read_preprocessing(source))
            write_bytes(target, written.SerializeToString(deterministic=True))
        elif recipe.algorithm == "qdq":
            details = quantize_qdq(float32, target, images, recipe.max_drop, score)
        elif recipe.algorithm == "nncf":
            details = quantize_nncf(float32, part, images, recipe)
        else:
            shutil.copyfile(Path(exports) / f"{recipe.weights}.onnx", target)
        seconds = time.perf_counter() - start
        model.config.save_pretrained(part)
        models.save_preprocessor(part, source)
        info = {
            **({"run": run} if run else {}),
            "parameters": parameters,
            "float32_bytes": size,
            "quantized_fraction": _quantized_fraction(part),
            **details,
        }
        seal(part, recipe, info)
        probe(part, (1, 3, 64, 96) if images is None else images[:1].shape)
    return {"seconds": round(seconds, 3), "calibration_images": 0 if images is None else len(images)}


def needs_images(recipe: Graph | Packed, images: torch.Tensor | None) -> None:
    """Raise DataError for a recipe that calibrates, without images."""
    if recipe.calibration_images and (images is None or not len(images)):
        raise DataError(f"algorithm {recipe.algorithm} calibrates on images of the train split: there are none")


@torch.inference_mode()
def probe(folder: Path, shape: Sequence[int]) -> None:
    """Raise ModelError unless the artifact runs and its logits are numbers."""
    model = load(folder).model
    finite(model(torch.randn(*shape, generator=torch.Generator().manual_seed(0))).logits, str(folder))


def _quantized_fraction(folder: Path) -> float:
    """The share of int8 among the numbers that the graph in `folder` holds. An ONNX graph's ranges do not count."""
    if (folder / "model.onnx").is_file():
        onnx = needs("onnx")
        graph = onnx.load(folder / "model.onnx").graph
        ends = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
        ranges = {name for node in ends for name in node.input[1:]}
        sizes = [
            (tensor.data_type == onnx.TensorProto.INT8, math.prod(tensor.dims))
            for tensor in graph.initializer
            if tensor.name not in ranges and tensor.data_type != onnx.TensorProto.INT64
        ]
    else:
        ops = core().read_model(folder / "model.xml").get_ops()
        weights = [op for op in ops if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) > 1]
        sizes = [
            (op.get_element_type().get_type_name() in ("i8", "u8"), math.prod(op.get_output_shape(0))) for op in weights
        ]
    return sum(count for int8, count in sizes if int8) / sum(count for _, count in sizes)
