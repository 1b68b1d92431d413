"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from segquant.engines.extras import needs
from segquant.engines.runtime import End, Runtime

NAME = "ONNX Runtime"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def start(path: Path, _compute: str) -> tuple[Runtime, list[End], list[End]]:
    """The graph in an ONNX file, ready to run, with its inputs and outputs."""
    ort = needs("onnxruntime")
    options, threads = ort.SessionOptions(), torch.get_num_threads()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # it has mended what it warns of, and raises its errors
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs, outputs = (
        [End(end.name, end.type, list(end.shape)) for end in ends]
        for ends in (session.get_inputs(), session.get_outputs())
    )

    def call(pixels):
        return session.run(None, {inputs[0].name: pixels})[0]

    model = Runtime(call, "onnxruntime", ort.__version__, threads)
    model.metadata = session.get_modelmeta().custom_metadata_map
    return model, inputs, outputs
