"""Export the float model as ONNX in float32 and float16, and compare both with PyTorch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segquant import models
from segquant.base.errors import ModelError, UnavailableError, one_line
from segquant.base.files import replacing, write_bytes, write_json
from segquant.data.preprocessing import read_preprocessing
from segquant.deploy.graph import INPUT, LOGITS, OPSET, Pixels, exported, to_onnx
from segquant.engines.extras import needs
from segquant.engines.runtime import CLASSES
from segquant.quant.tensors import finite

log = logging.getLogger(__name__)
PRECISIONS = ("float32", "float16")
TOLERANCE = 1e-4  # largest difference of float32's logits from PyTorch's
LEAST_AGREEMENT = 0.98  # share of pixels of noise with PyTorch's class, for float16
_SHAPES = ((1, 64, 96), (3, 160, 128))  # (batch, height, width), none of which torch.export traced


def export_onnx(source: str | Path, folder: str | Path, opset: int = OPSET, classes: bool = False) -> dict[str, Any]:
    """Write float32.onnx, float16.onnx and export.json of the baseline at `source` to `folder`.

    The graphs take any batch, and heights and widths in multiples of 32. With `classes` they give class maps uint8
    (B, H, W) at the input's size instead of logits. Returns the content of export.json: for each graph its bytes, its
    number of nodes, the largest difference of its logits from PyTorch's and the share of equal classes.

    Raises ModelError if float32's logits differ by more than 1e-4 or fewer than 98 % of a graph's classes agree,
    UnavailableError without the extra `onnx`, ConfigError for an opset that the exporter cannot write.
    """
    needs("onnx", "onnxscript", "onnxruntime")
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model, preprocessing = models.load(source), read_preprocessing(source)
    output = CLASSES if classes else LOGITS
    summary: dict[str, Any] = {"opset": opset, "output": output}
    with replacing(folder) as part:
        part.mkdir()
        pixels = Pixels(model, classes)
        graph = to_onnx(exported(pixels), model.config, preprocessing, opset, output)
        for name in PRECISIONS:
            if name == "float16":
                graph = convert_float_to_float16(graph, keep_io_types=True)
                OnnxModel(graph).topological_sort()  # the conversion appends its casts at the end
            path = part / f"{name}.onnx"
            write_bytes(path, graph.SerializeToString(deterministic=True))
            comparison = _compare(path, pixels, name)
            summary[name] = {"bytes": path.stat().st_size, "nodes": len(graph.graph.node), **comparison}
            log.info("%s: %.2f MB, against PyTorch %s", path.name, path.stat().st_size / 1e6, comparison)
        write_json(part / "export.json", summary)
    return summary


def write_exports(source: str | Path, folder: str | Path) -> None:
    """`export_onnx` for the pipeline: if it cannot export, export.json gives the reason under `unavailable`."""
    try:
        export_onnx(source, folder)
    except (ModelError, UnavailableError) as error:  # methods that need no graph can still run
        with replacing(folder) as part:
            part.mkdir()
            write_json(part / "export.json", {"unavailable": str(error)})


@torch.inference_mode()
def _compare(path: Path, pixels: nn.Module, precision: str) -> dict[str, float]:
    """Compare ONNX Runtime's output with that of PyTorch in float32, on noise.

    Returns the largest difference of logits (`difference`, unless the graph gives classes) and the smallest share of
    equal classes (`agreement`). Raises ModelError where they are beyond TOLERANCE or LEAST_AGREEMENT.
    """
    ort = needs("onnxruntime")
    try:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # an opset that it does not know, for example
        raise ModelError(f"onnxruntime {ort.__version__} cannot load the model: {one_line(error, end=True)}") from error
    difference, agreements = 0.0, []
    for batch, height, width in _SHAPES:
        noise = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        output, expected = session.run(None, {INPUT: noise.numpy()})[0], pixels(noise).numpy()
        if pixels.classes:
            agreements.append((output == expected).mean())
            continue
        finite(torch.from_numpy(output), f"the {precision} ONNX model")
        difference = max(difference, float(np.abs(output - expected).max()))
        agreements.append((output.argmax(1) == expected.argmax(1)).mean())
    agreement = float(min(agreements))
    if (precision == "float32" and difference > TOLERANCE) or agreement < LEAST_AGREEMENT:
        logits = "" if pixels.classes else f"logits differ by up to {difference:.1e}, and "
        raise ModelError(f"the {precision} ONNX model does not match PyTorch: {logits}{agreement:.1%} of classes agree")
    return {"agreement": agreement} if pixels.classes else {"difference": difference, "agreement": agreement}
