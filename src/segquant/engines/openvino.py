"""OpenVINO on the CPU."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segquant.base.errors import ModelError
from segquant.engines.extras import needs
from segquant.engines.runtime import End, Runtime

NAME = "OpenVINO"
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "openvino")
_PRECISION = {"float32": "f32", "bfloat16": "bf16"}
_ARRAYS = {"f16": np.float16}


@cache
def core() -> Any:
    """The only Core of this process.

    Each Core gives the thread a stack for signal handlers, and the stack before it when it ends. If two end in another
    order than they began, the stack is freed memory, and the next signal, such as Ctrl-C, is a segmentation fault.
    """
    return needs("openvino").Core()


def start(path: Path, compute: str) -> tuple[Runtime, list[End], list[End]]:
    """The graph in an ONNX file or in OpenVINO's own format, ready to run, with its inputs and outputs."""
    openvino, threads = needs("openvino"), torch.get_num_threads()
    stored = {}
    if path.suffix != ".xml":  # onnx reads it first: OpenVINO tries a file that is no ONNX as every other format, aloud
        stored = {entry.key: entry.value for entry in needs("onnx").load(path).metadata_props}
    graph = core().read_model(path)
    inputs, outputs = ([_end(end) for end in ends] for ends in (graph.inputs, graph.outputs))
    if by_position(graph):
        raise ModelError(
            f"{path} has ranges for each position of an image, which OpenVINO computes wrongly: quantize again"
        )
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": _PRECISION[compute],
    }
    compiled = core().compile_model(graph, "CPU", options)
    _begin(compiled, inputs)
    version = openvino.__version__.split("-")[0]
    model = Runtime(lambda pixels: compiled([pixels])[0], "openvino", version, threads)
    model.metadata = stored
    return model, inputs, outputs


def by_position(graph: Any) -> bool:
    """Whether a quantizer's ranges differ along an axis whose size is open, such as that of an image's positions.

    OpenVINO 2026.4.1 gives other logits each time that such a graph runs on the same image. It also runs it on another
    size, with the ranges of other positions (96x64 for 64x96), or gives the logits of the images before.
    """
    for quantizer in graph.get_ops():
        if quantizer.get_type_name() == "FakeQuantize":
            ranges, values = quantizer.input(1).get_shape(), quantizer.input(0).get_partial_shape()
            if any(size > 1 and axis.is_dynamic for size, axis in zip(reversed(ranges), reversed(list(values)))):
                return True
    return False


def _begin(compiled: Any, inputs: list[End]) -> None:
    """Run a graph for any size once.

    OpenVINO 2026.4.1 plans attention by its first input. After one of 32x32, where stages have a single key, the logits
    of all larger ones are wrong.
    """
    if len(inputs) == 1 and len(inputs[0].shape) == 4 and "any" in inputs[0].shape[2:]:
        sizes = [usual if size == "any" else size for size, usual in zip(inputs[0].shape, (1, 3, 64, 64), strict=True)]
        with suppress(Exception):  # of a graph that is no SegFormer's, as it turns out elsewhere
            compiled([np.zeros(sizes, _ARRAYS.get(inputs[0].kind, np.float32))])


def _end(end) -> End:
    shape = [size.get_length() if size.is_static else "any" for size in end.partial_shape]
    return End(end.any_name, end.element_type.get_type_name(), shape)
