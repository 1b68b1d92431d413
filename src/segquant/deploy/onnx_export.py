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
from segquant.base.failures import failure
from segquant.base.files import replacing, write_bytes, write_json
from segquant.data.preprocessing import read_preprocessing
from segquant.deploy.graph import INPUT, LOGITS, OPSET, Pixels, check_opset, exported, to_onnx
from segquant.engines.extras import needs
from segquant.engines.runtime import CLASSES
from segquant.quant.tensors import finite

log = logging.getLogger(__name__)
PRECISIONS = ("float32", "float16")
TOLERANCE = 1e-4  # largest difference of float32's logits from PyTorch's
LEAST_AGREEMENT = 0.98  # share of pixels of noise with PyTorch's class, for float16
_SHAPES = ((1, 64, 96), (3, 160, 128))  # (batch, height, width), none of which torch.export traced


def export_onnx(
    source: str | Path, folder: str | Path, opset: int = OPSET, classes: bool = False, whole: bool = True
) -> dict[str, Any]:
    """Write float32.onnx, float16.onnx and export.json of the baseline at `source` to `folder`.

    The graphs take any batch, and heights and widths in multiples of 32. With `classes` they give class maps uint8
    (B, H, W) at the input's size instead of logits. Returns the content of export.json: for each graph its bytes, its
    number of nodes, the largest difference of its logits from PyTorch's and the share of equal classes. Unless the
    export is to be `whole`, it goes without a float16 that fails, and export.json says why (`failures.failure`).

    Raises ModelError if the model cannot be exported, float32's logits differ by more than 1e-4, or fewer than 98 % of
    a graph's classes agree; UnavailableError without the extra `onnx`, ConfigError for an unknown opset.
    """
    needs("onnx", "onnxscript", "onnxruntime")
    check_opset(opset)
    model, preprocessing = models.load(source), read_preprocessing(source)
    output = CLASSES if classes else LOGITS
    summary: dict[str, Any] = {"opset": opset, "output": output}
    with replacing(folder) as part:
        part.mkdir()
        pixels = Pixels(model, classes)
        graph = to_onnx(exported(pixels), model.config, preprocessing, opset, output)
        for name in PRECISIONS:
            path = part / f"{name}.onnx"
            try:
                summary[name] = _write(path, graph if name == "float32" else _to_float16(graph), pixels, name)
            except Exception as error:
                if whole or name == "float32":
                    raise
                path.unlink(missing_ok=True)
                summary[name] = failure(f"export of {name}", error)
        write_json(part / "export.json", summary)
    return summary


def write_exports(source: str | Path, folder: str | Path) -> None:
    """`export_onnx` for the pipeline: where it fails, export.json gives the reason (`failures.MISSING`).

    Methods that need no graph can still run.
    """
    try:
        export_onnx(source, folder, whole=False)
    except UnavailableError as error:
        reason = {"unavailable": str(error)}
    except Exception as error:  # exporters and engines raise many types
        reason = failure("export to ONNX", error)
    else:
        return
    with replacing(folder) as part:
        part.mkdir()
        write_json(part / "export.json", reason)


def _write(path: Path, graph: Any, pixels: nn.Module, precision: str) -> dict[str, Any]:
    """Write a graph and compare it with PyTorch; gives its part of export.json."""
    write_bytes(path, graph.SerializeToString(deterministic=True))
    comparison = _compare(path, pixels, precision)
    log.info("%s: %.2f MB, against PyTorch %s", path.name, path.stat().st_size / 1e6, comparison)
    return {"bytes": path.stat().st_size, "nodes": len(graph.graph.node), **comparison}


def _to_float16(graph: Any) -> Any:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        converted = convert_float_to_float16(graph, keep_io_types=True)
        OnnxModel(converted).topological_sort()  # the conversion appends its casts at the end
    except Exception as error:  # it raises many types
        raise ModelError(f"onnxruntime cannot convert the model to float16: {one_line(error, 200)}") from error
    return converted


@torch.inference_mode()
def _compare(path: Path, pixels: nn.Module, precision: str) -> dict[str, float]:
    """Compare ONNX Runtime's output with that of PyTorch in float32, on noise.

    Returns the largest difference of logits (`difference`, unless the graph gives classes) and the smallest share of
    equal classes (`agreement`). Raises ModelError where they are beyond TOLERANCE or LEAST_AGREEMENT.
    """
    ort = needs("onnxruntime")
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what it logs of an error it raises too
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # an opset that it does not know, for example
        raise ModelError(f"onnxruntime {ort.__version__} cannot load the model: {one_line(error, end=True)}") from error
    difference, agreements = 0.0, []
    for batch, height, width in _SHAPES:
        noise = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        try:
            expected = pixels(noise).numpy()
            output = session.run(None, {INPUT: noise.numpy()})[0]
        except Exception as error:  # a graph that is right for the traced size alone, for example
            reason = one_line(error, 200, end=True)
            sizes = f"{batch}x3x{height}x{width}"
            raise ModelError(f"the {precision} ONNX model does not run on pixels {sizes}: {reason}") from error
        if pixels.classes:
            agreements.append((output == expected).mean())
            continue
        finite(torch.from_numpy(output), f"the {precision} ONNX model")
        difference = float(np.maximum(difference, np.abs(output - expected).max()))  # NaN stays
        agreements.append((output.argmax(1) == expected.argmax(1)).mean())
    agreement = float(min(agreements))
    if (precision == "float32" and not difference <= TOLERANCE) or not agreement >= LEAST_AGREEMENT:  # NaN fails
        logits = "" if pixels.classes else f"logits differ by up to {difference:.1e}, and "
        raise ModelError(f"the {precision} ONNX model does not match PyTorch: {logits}{agreement:.1%} of classes agree")
    return {"agreement": agreement} if pixels.classes else {"difference": difference, "agreement": agreement}
