"""Static int8 by ONNX Runtime's quantizer, and a search for the nodes that must stay float."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segquant.base.errors import ModelError, one_line
from segquant.base.files import write_bytes
from segquant.base.progress import progress
from segquant.base.temporary import temporary
from segquant.deploy.graph import INPUT, strip
from segquant.engines.extras import needs
from segquant.engines.load import load_graph
from segquant.quant.tensors import finite

log = logging.getLogger(__name__)
PROBED = 4  # images on which each node's sensitivity is measured
_TYPES = ["Conv", "MatMul"]

Score = Callable[[nn.Module], float]  # model -> points of mIoU


def quantize_qdq(
    source: str | Path, target: Path, images: torch.Tensor, max_drop: float | None = None, score: Score | None = None
) -> dict[str, Any]:
    """Quantize the float32 ONNX model `source` to `target`; images (N, 3, H, W) give the ranges.

    Weights of Conv and MatMul get a scale per channel, their inputs a scale per tensor. Products of two activations, as
    in attention, stay float, and so does the first convolution, which sees pixels: quantizing it would cost more
    accuracy than all other nodes together.

    If `score` falls by more than `max_drop`, the function quantizes each node alone to measure its sensitivity, and
    leaves the fewest of the most sensitive nodes in float that keep the drop within `max_drop`. Returns `drop`
    (points), `float_nodes` and `sensitivity` (node, shape of its weight, SNR of the logits in dB), each if measured.
    """
    with temporary(Path(tempfile.gettempdir())) as folder:  # whose name no error repeats
        quantizer = _Quantizer(Path(source), folder, images)
        quantizer.write(target)
        if max_drop is None or score is None:
            return {"float_nodes": []}
        float_score = score(load_graph(source))

        @cache
        def drop(count: int) -> float:
            """Points lost with the `count` most sensitive nodes in float."""
            quantizer.write(target, ranked[:count])
            points = float_score - score(load_graph(target))
            log.info("%d of %d nodes in float: %.3f points lost", count, len(quantizer.shapes), points)
            return points

        ranked: list[str] = []  # node names, the most sensitive first
        if drop(0) <= max_drop:
            return {"drop": drop(0), "float_nodes": []}
        sensitivity = quantizer.sensitivity()
        ranked = [row["node"] for row in sensitivity]
        low, high = 0, 1
        while high < len(ranked) and not drop(high) <= max_drop:
            low, high = high, min(2 * high, len(ranked))
        while high - low > 1:  # bisect: with more nodes in float the drop is taken to shrink
            middle = (low + high) // 2
            low, high = (low, middle) if drop(middle) <= max_drop else (middle, high)
        summary = {"drop": drop(high), "float_nodes": ranked[:high], "sensitivity": sensitivity}
        quantizer.write(target, ranked[:high])
        return summary


class _Quantizer:
    """A float model that is preprocessed once, calibrated once, and quantized as often as the search needs.

    `shapes` holds {name: weight shape} of the nodes to quantize. Temporary files go to `folder`.
    """

    def __init__(self, source: Path, folder: Path, images: torch.Tensor):
        onnx = needs("onnx", "onnxscript", "onnxruntime")
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self.folder, self.images, self.model = folder, images, folder / "prepared.onnx"
        source = source.absolute()
        try:
            with contextlib.chdir(folder):  # where it cannot infer a shape, it leaves a graph in the working folder
                quant_pre_process(source, self.model)
        except Exception as error:  # it raises many types
            reason = one_line(error, 200)
            raise ModelError(f"ONNX Runtime cannot prepare the graph for its quantizer: {reason}") from error
        graph = onnx.load(self.model).graph
        weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        products = [node for node in graph.node if node.op_type in _TYPES]
        first = next(node.name for node in products if INPUT in node.input)
        self.shapes = {
            node.name: next(weights[name] for name in node.input if name in weights)
            for node in products
            if node.name != first and any(name in weights for name in node.input)
        }
        self.floats = [node.name for node in products if node.name not in self.shapes]

    def write(self, target: Path, float_nodes: Sequence[str] = (), only: str | None = None) -> None:
        """Write the quantized model, with `float_nodes` in float, or with the node `only` alone in int8."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        quantize_static(
            self.model,
            target,
            _Reader(self.images),
            calibration_cache_path=self.folder / "ranges.json",  # so that later calls do not calibrate again
            calibrate_method=CalibrationMethod.MinMax,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_TYPES,
            nodes_to_quantize=[only] if only else list(self.shapes),
            nodes_to_exclude=[*self.floats, *float_nodes],
            # An addition in float takes the output of a MatMul: quantizing it would only round it.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        written = needs("onnx").load(target)
        strip(written)
        write_bytes(target, written.SerializeToString(deterministic=True))

    def sensitivity(self) -> list[dict[str, Any]]:
        """Quantize each node alone and measure the SNR of the logits; the most sensitive node comes first."""
        inputs = self.images[:: max(1, len(self.images) // PROBED)][:PROBED].numpy()
        expected, alone = self._logits(self.model, inputs), self.folder / "alone.onnx"
        rows = []
        with progress(total=len(self.shapes), desc="sensitivity", unit="node") as bar:
            for name, shape in self.shapes.items():
                self.write(alone, only=name)
                error = float(np.square(self._logits(alone, inputs) - expected).mean())
                snr = 10 * np.log10(float(np.square(expected).mean()) / max(error, 1e-20))
                rows.append({"node": name, "weight": shape, "snr_db": round(float(snr), 2)})
                bar.update()
        return sorted(rows, key=lambda row: row["snr_db"])

    @staticmethod
    def _logits(path: Path, inputs: np.ndarray) -> np.ndarray:
        return finite(load_graph(path).logits(torch.from_numpy(inputs)), "the graph").numpy()


class _Reader:
    """The interface of onnxruntime.quantization.CalibrationDataReader, without importing onnxruntime for it."""

    def __init__(self, images: torch.Tensor):
        self._images = iter(images.numpy())

    def __iter__(self):
        return self

    def __next__(self):
        return {INPUT: next(self._images)[None]}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self, None)
