"""The float model as ONNX, float32 and float16, held against PyTorch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segquant import models
from segquant.base.errors import ModelError, UnavailableError
from segquant.base.files import replacing, write_bytes, write_json
from segquant.deploy.graph import INPUT, LOGITS, OPSET, Pixels, exported, to_onnx
from segquant.engines.extras import needs
from segquant.engines.runtime import CLASSES, said

log = logging.getLogger(__name__)
PRECISIONS = ("float32", "float16")
TOLERANCE = 1e-4  # of float32's logits, against PyTorch's
LEAST_AGREEMENT = 0.98  # of float16's classes with PyTorch's, on noise
_SHAPES = ((1, 64, 96), (3, 160, 128))


def export_onnx(source: str | Path, folder: str | Path, opset: int = OPSET, classes: bool = False) -> dict[str, Any]:
    """Write float32.onnx, float16.onnx and export.json of the baseline at `source` to `folder`.

    The graphs take any batch, and heights and widths in multiples of 32; with `classes` they give class maps uint8
    (B, H, W) at the input's size in place of logits. Gives export.json: bytes, nodes and the greatest difference
    from PyTorch of each. Raises ModelError when that is more than 1e-4 for float32, UnavailableError without the extra,
    ConfigError for an opset that the exporter does not know.
    """
    needs("onnx", "onnxscript", "onnxruntime")
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model, normalization = models.load(source), models.normalization(source)
    output = CLASSES if classes else LOGITS
    told: dict[str, Any] = {"opset": opset, "output": output}
    with replacing(folder) as part:
        part.mkdir()
        pixels = Pixels(model, classes)
        graph = to_onnx(exported(pixels), model.config, normalization, opset, output)
        for name in PRECISIONS:
            if name == "float16":
                graph = convert_float_to_float16(graph, keep_io_types=True)
                OnnxModel(graph).topological_sort()  # its casts come last in the file
            path = part / f"{name}.onnx"
            write_bytes(path, graph.SerializeToString(deterministic=True))
            check = _difference(path, pixels, name)
            told[name] = {"bytes": path.stat().st_size, "nodes": len(graph.graph.node), **check}
            log.info("%s: %.2f MB, %s", path.name, path.stat().st_size / 1e6, check)
        write_json(part / "export.json", told)
    return told


def write_exports(source: str | Path, folder: str | Path) -> None:
    """`export_onnx` as the pipeline keeps it: without the extra, or of a model that has no graph, a folder says so."""
    try:
        export_onnx(source, folder)
    except (ModelError, UnavailableError) as error:  # the methods that want no graph go on without
        with replacing(folder) as part:
            part.mkdir()
            write_json(part / "export.json", {"unavailable": str(error)})


@torch.inference_mode()
def _difference(path: Path, pixels: nn.Module, precision: str) -> dict[str, float]:
    """Of ONNX Runtime's output from PyTorch's float32, on noise in sizes that were not traced."""
    ort = needs("onnxruntime")
    try:
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # an opset it does not know, among others
        raise ModelError(f"onnxruntime {ort.__version__} cannot load the model: {said(error)}") from error
    most, same = 0.0, []
    for batch, height, width in _SHAPES:
        noise = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        found, wanted = session.run(None, {INPUT: noise.numpy()})[0], pixels(noise).numpy()
        if pixels.classes:
            same.append((found == wanted).mean())
            continue
        most = max(most, float(np.abs(found - wanted).max()))
        same.append((found.argmax(1) == wanted.argmax(1)).mean())
    agreement = float(min(same))
    if (precision == "float32" and most > TOLERANCE) or agreement < LEAST_AGREEMENT:
        differ = "" if pixels.classes else f"logits differ by up to {most:.1e}, and "
        raise ModelError(f"the {precision} ONNX model is not PyTorch's: {differ}{agreement:.1%} of classes agree")
    return {"agreement": agreement} if pixels.classes else {"difference": most, "agreement": agreement}
