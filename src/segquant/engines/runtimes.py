"""Engines behind one interface: `load` an artifact, or `load_graph` an ONNX file, and `model(pixels).logits`.

What comes out is called as transformers' own models are, so that evaluation treats every engine alike.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from segquant.base.errors import ModelError, UnavailableError
from segquant.data.protocols import Normalization
from segquant.deploy.graph import CLASSES, STEP
from segquant.engines.extras import needs
from segquant.quant import artifacts
from segquant.quant.artifacts import Artifact, describe_artifact, intact

log = logging.getLogger(__name__)
GRAPHS = ("model.onnx", "model.xml")  # of an artifact, whichever is there


class End(NamedTuple):
    """An input or output of a graph; a size that may vary is a word."""

    name: str
    kind: str
    shape: list[int | str]


class Runtime(nn.Module):
    """A graph on an engine of its own, called as a transformers model is.

    `version` is the engine's, `threads` how many it computes with; `normalization` is what its metadata say that its
    pixels want, `batch` how many images it takes at a time, None for any number.
    """

    def __init__(self, call: Callable[[np.ndarray], np.ndarray], engine: str, version: str, threads: int):
        super().__init__()
        self.engine, self.version, self.threads, self._call = engine, version, threads, call
        self.normalization: Normalization | None = None
        self.batch: int | None = None
        self.config = SimpleNamespace(num_labels=None)
        self._place = nn.Parameter(torch.zeros(1), requires_grad=False)  # says: float32 on the CPU

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits float32 (B, C, h, w) of inputs float32 (B, 3, H, W). Raises ModelError for sizes that cannot be."""
        shape = "x".join(map(str, inputs.shape))
        if any(size % STEP for size in inputs.shape[-2:]):
            raise ModelError(f"graphs take heights and widths in multiples of {STEP}, not {shape}: choose such a size")
        try:
            return torch.from_numpy(self._call(inputs.numpy()))
        except Exception as error:  # engines raise many types
            raise ModelError(f"{self.engine} cannot run the graph on pixels {shape}: {said(error)}") from error

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits(pixel_values))


def load(source: str | Path, device: torch.device | str = "cpu") -> Artifact:
    """Load an artifact of any engine; what PyTorch runs goes to `device`, graphs run on the CPU.

    Raises as `quant.artifacts.load_artifact`, and UnavailableError where the engine is not installed.
    """
    info = describe_artifact(source)
    recipe = info["recipe"]
    if "engine" not in recipe:
        return artifacts.load_artifact(source, device)
    if "unavailable" in info:
        raise UnavailableError(info["unavailable"])
    intact(source, info)
    needs(recipe["engine"])  # not what loading takes: PyTorch is there too
    start = time.perf_counter()
    paths = [Path(source) / name for name in info["files"] if name.startswith("model.")]
    model = load_graph(next(path for path in paths if path.name in GRAPHS), recipe["engine"], recipe["compute"])
    seconds, size = time.perf_counter() - start, sum(path.stat().st_size for path in paths)
    log.info("loaded %s: %.2f MB on disk, %.2f s, %s %s", source, size / 1e6, seconds, model.engine, model.version)
    return Artifact(model, info, size, seconds)


def load_quantized(source: str | Path, device: torch.device | str = "cpu", **pinned: str | None) -> nn.Module:
    """`quant.artifacts.load_quantized`, for artifacts of every engine."""
    if Path(source).is_dir():
        return load(source, device).model
    return artifacts.load_quantized(source, device, **pinned)


def load_graph(path: str | Path, engine: str = "onnxruntime", compute: str = "float32") -> Runtime:
    """The graph in a file on `engine`, with as many threads as PyTorch has.

    `compute` is what OpenVINO does in float: float32, or bfloat16 on processors that can. Raises ModelError for a file
    that is no SegFormer's or that the engine cannot read, UnavailableError where the engine is not installed.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise ModelError(f"{path} {what}: give an ONNX file")
    starter = {"onnxruntime": _onnxruntime, "openvino": _openvino}[engine]
    try:
        model, inputs, outputs = starter(path, compute)
    except (UnavailableError, ModelError):
        raise
    except Exception as error:  # engines raise many types
        raise ModelError(f"{engine} cannot load {path}: {said(error)}") from error
    fits = len(inputs) == len(outputs) == 1 and [len(end.shape) for end in (*inputs, *outputs)] == [4, 4]
    if not fits or (isinstance(inputs[0].shape[1], int) and inputs[0].shape[1] != 3):
        if [name for name, _, _ in outputs] == [CLASSES]:
            raise ModelError(f"{path} gives class maps: export it without --classes, as scores are of logits")
        told = "; ".join(f"{name} {kind} {shape}" for name, kind, shape in (*inputs, *outputs))
        raise ModelError(
            f"{path} is not a SegFormer's graph: it must take pixels (B, 3, H, W) and give logits (B, C, h, w), not "
            f"{told[:200]}"
        )
    sizes, classes = inputs[0].shape, outputs[0].shape[1]
    model.batch = sizes[0] if isinstance(sizes[0], int) else None
    if not isinstance(classes, int):
        known = [size if isinstance(size, int) else usual for size, usual in zip(sizes, (1, 3, 64, 64))]
        classes = model.logits(torch.zeros(known)).shape[1]
    model.config.num_labels = classes
    return model


def _onnxruntime(path: Path, _compute: str) -> tuple[Runtime, list[End], list[End]]:
    ort = needs("onnxruntime")
    options, threads = ort.SessionOptions(), torch.get_num_threads()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors: what it warns of it has mended
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs, outputs = (
        [End(end.name, end.type, list(end.shape)) for end in ends]
        for ends in (session.get_inputs(), session.get_outputs())
    )
    model = Runtime(
        lambda array: session.run(None, {inputs[0].name: array})[0], "onnxruntime", ort.__version__, threads
    )
    model.normalization = _normalization(path, session.get_modelmeta().custom_metadata_map)
    return model, inputs, outputs


def _openvino(path: Path, compute: str) -> tuple[Runtime, list[End], list[End]]:
    openvino, threads = needs("openvino"), torch.get_num_threads()
    stored = []
    if path.suffix != ".xml":  # read here first, as OpenVINO tries what is no ONNX as every other format, aloud
        stored = needs("onnx").load(path).metadata_props
    core = openvino.Core()
    graph = core.read_model(path)
    inputs, outputs = (
        [
            End(
                end.any_name,
                end.element_type.get_type_name(),
                [size.get_length() if size.is_static else "any" for size in end.partial_shape],
            )
            for end in ends
        ]
        for ends in (graph.inputs, graph.outputs)
    )
    compiled = core.compile_model(
        graph,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[compute],
        },
    )
    version = openvino.__version__.split("-")[0]
    model = Runtime(lambda array: compiled([array])[0], "openvino", version, threads)
    model.normalization = _normalization(path, {one.key: one.value for one in stored})
    return model, inputs, outputs


def _normalization(path: Path, metadata: dict[str, str]) -> Normalization | None:
    """Mean and standard deviation that a graph's metadata name, None where they name none.

    Raises ModelError where `preprocessing` is not what `segquant export` writes: pixels would be normalized wrongly.
    """
    if "preprocessing" not in metadata:
        return None
    try:
        given: Any = json.loads(metadata["preprocessing"])
        (r, g, b), (dr, dg, db) = given["mean"], given["std"]
        fits = given.get("channels", "RGB") == "RGB" and abs(given.get("scale", 1 / 255) - 1 / 255) < 1e-6
        mean, std = tuple(map(float, (r, g, b))), tuple(map(float, (dr, dg, db)))
    except (AttributeError, KeyError, TypeError, ValueError):
        fits = False
    if not fits:
        raise ModelError(
            f"{path} has metadata `preprocessing` of another kind: it must be JSON with the mean and std of three "
            "channels RGB, of pixels divided by 255"
        )
    return mean, std


def said(error: Exception) -> str:
    """What an engine says, in a line. It names its own source files first, and the reason last."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"...{text[-300:]}"
