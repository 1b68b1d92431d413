"""Export a float model as ONNX in float32 and float16, or an artifact in its own bits, and compare with PyTorch."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from segquant import models
from segquant.base.errors import ModelError, UnavailableError, one_line
from segquant.base.failures import failure
from segquant.base.files import replacing, write_bytes, write_json
from segquant.base.recipes import ENGINES
from segquant.data.preprocessing import Preprocessing, read_preprocessing
from segquant.deploy.graph import LOGITS, OPSET, Pixels, check_opset, exported, to_onnx
from segquant.deploy.packed import float_twin, pack_weights
from segquant.engines.extras import needs
from segquant.engines.load import start
from segquant.engines.runtime import CLASSES
from segquant.quant.artifacts import load_artifact
from segquant.quant.tensors import CASTS, finite

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)
PRECISIONS = ("float32", "float16")
TOLERANCE = 1e-4  # largest difference of logits from PyTorch's, of graphs that compute in float32
LEAST_AGREEMENT = {"float32": 0.98, "float16": 0.98, "packed": 0.9999}  # share of places of noise with PyTorch's class
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
    with replacing(folder, fresh=whole) as part:
        part.mkdir()
        pixels = Pixels(model, classes)
        graph = to_onnx(exported(pixels), model.config, preprocessing, opset, output)
        for name in PRECISIONS:
            path = part / f"{name}.onnx"
            try:
                size = _write(path, graph if name == "float32" else _to_float16(graph))
                summary[name] = {**size, **compare(path, pixels, name, classes=classes)}
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


def export_artifact(
    artifact: str | Path, folder: str | Path, opset: int = OPSET, classes: bool = False
) -> dict[str, Any]:
    """Write model.onnx and export.json of an artifact of PyTorch's to `folder`: its codes at their true width.

    The graph is that of `export_onnx` and computes in float32; its metadata have the `recipe` as well. Returns the
    content of export.json: bytes, the number of nodes, and by engine what `export_onnx` compares.

    Raises ModelError where an installed engine's logits differ by more than 1e-4, or its classes at more than one place
    of an image and one in 10,000, and for an artifact of a graph, without quantized weights or with quantized
    activations; as `export_onnx` for the rest.
    """
    needs("onnx", "onnxscript", "onnxruntime")
    check_opset(opset)
    loaded = load_artifact(artifact)
    model, recipe = loaded.model, loaded.info["recipe"]
    if recipe["weights"] in CASTS:
        raise ModelError(f"{artifact} has no quantized weight: export its float model by --model")
    if recipe.get("activations"):
        raise ModelError(
            f"{artifact} quantizes activations as they come, and a graph with codes computes in float32: export a "
            "method with float activations, or choose one with an engine"
        )
    with replacing(folder, fresh=True) as part:
        part.mkdir()
        path, pixels = part / "model.onnx", Pixels(model, classes)
        graph = packed_graph(model, recipe, read_preprocessing(artifact), opset, classes)
        summary: dict[str, Any] = {"opset": opset, "output": graph.graph.output[0].name, **_write(path, graph)}
        for engine in filter(find_spec, ENGINES):
            summary[engine] = compare(path, pixels, "packed", engine, classes)
        write_json(part / "export.json", summary)
    return summary


def packed_graph(
    model: nn.Module,
    recipe: dict[str, Any],
    preprocessing: Preprocessing,
    opset: int = OPSET,
    classes: bool = False,
) -> onnx.ModelProto:
    """The graph of a quantized model with its codes, which computes in float32; its metadata have the `recipe`."""
    twin = float_twin(model)
    graph = to_onnx(exported(Pixels(twin, classes)), twin.config, preprocessing, opset, CLASSES if classes else LOGITS)
    pack_weights(graph.graph, model, twin)
    graph.metadata_props.add(key="recipe", value=json.dumps(recipe))
    return graph


def _write(path: Path, graph: Any) -> dict[str, int]:
    """Write a graph; gives its bytes and its number of nodes."""
    write_bytes(path, graph.SerializeToString(deterministic=True))
    return {"bytes": path.stat().st_size, "nodes": len(graph.graph.node)}


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
def compare(
    path: Path,
    reference: Callable[[torch.Tensor], torch.Tensor],
    kind: str,
    engine: str = "onnxruntime",
    classes: bool = False,
) -> dict[str, float]:
    """Compare an engine's output, logits or `classes`, with that of a `reference` on noise (B, 3, H, W).

    Returns the largest difference of logits (`difference`, unless the graph gives classes) and the smallest share of
    equal classes (`agreement`). Raises ModelError where they are beyond TOLERANCE or LEAST_AGREEMENT, by more than one
    place of an image's classes.
    """
    try:
        call = start(path, engine)[0].call
    except Exception as error:  # an opset that it does not know, for example
        version = needs(engine).__version__
        raise ModelError(f"{engine} {version} cannot load the model: {one_line(error, end=True)}") from error
    name = f"the {kind} ONNX model" + (f" on {engine}" if kind == "packed" else "")
    difference, agreements, enough = 0.0, [], True
    for batch, height, width in _SHAPES:
        noise = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
        try:
            expected, output = reference(noise).numpy(), call(noise.numpy())
        except Exception as error:  # a graph that is right for the traced size alone, for example
            reason = one_line(error, 200, end=True)
            raise ModelError(f"{name} does not run on pixels {batch}x3x{height}x{width}: {reason}") from error
        if not classes:
            finite(torch.from_numpy(output), name)
            difference = float(np.maximum(difference, np.abs(output - expected).max()))  # NaN stays
            expected, output = expected.argmax(1), output.argmax(1)
        same = output == expected
        agreements.append(same.mean())
        enough &= (~same).sum() <= max(1, (1 - LEAST_AGREEMENT[kind]) * same.size)  # one place may be a tie
    agreement = float(min(agreements))
    log.info(
        "%s (%.2f MB): logits within %.1e, %.4f of classes equal",
        name,
        path.stat().st_size / 1e6,
        difference,
        agreement,
    )
    if (kind != "float16" and not difference <= TOLERANCE) or not enough:  # NaN fails
        logits = "" if classes else f"logits differ by up to {difference:.1e}, and "
        raise ModelError(f"{name} does not match PyTorch: {logits}{agreement:.2%} of classes agree")
    return {"agreement": agreement} if classes else {"difference": difference, "agreement": agreement}
