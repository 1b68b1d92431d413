"""Static int8 by ONNX Runtime's quantizer, and the search for the nodes that it is better to leave in float."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segquant.base.files import write_bytes
from segquant.base.progress import progress
from segquant.deploy.graph import INPUT, strip
from segquant.engines.extras import needs
from segquant.engines.load import load_graph

log = logging.getLogger(__name__)
PROBED = 4  # images that each node's sensitivity is measured on
_TYPES = ["Conv", "MatMul"]

Score = Callable[[nn.Module], float]  # of a model, in points of mIoU


def quantize_qdq(
    source: str | Path, target: Path, images: torch.Tensor, max_drop: float | None = None, score: Score | None = None
) -> dict[str, Any]:
    """Write the float32 ONNX model `source`, quantized, to `target`; images (N, 3, H, W) give the ranges.

    Weights of Conv and of MatMul get a scale a channel, their inputs one a tensor; products of two activations, as in
    attention, stay float, and so does the first convolution, which sees pixels: it costs more accuracy than the others
    together. Where `score` falls by more than `max_drop`, each node's sensitivity is measured, quantized
    alone, and as few as it takes of the most sensitive ones are left in float. Gives `drop` (points), `float_nodes`
    and `sensitivity` (name, shape of the weight, SNR of the logits in dB) as far as they were measured.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = _Work(Path(source), Path(folder), images)
        work.write(target)
        if max_drop is None or score is None:
            return {"float_nodes": []}
        whole = score(load_graph(source))

        @cache
        def drop(count: int) -> float:
            """Points lost with so many of the most sensitive nodes in float."""
            work.write(target, names[:count])
            lost = whole - score(load_graph(target))
            log.info("%d of %d nodes in float: %.3f points lost", count, len(work.shapes), lost)
            return lost

        names: list[str] = []
        if drop(0) <= max_drop:
            return {"drop": drop(0), "float_nodes": []}
        ranked = work.sensitivity()
        names = [row["node"] for row in ranked]
        low, high = 0, 1
        while high < len(names) and drop(high) > max_drop:
            low, high = high, min(2 * high, len(names))
        while high - low > 1:  # the fewest that do, as far as fewer cost more
            middle = (low + high) // 2
            low, high = (middle, high) if drop(middle) > max_drop else (low, middle)
        found = {"drop": drop(high), "float_nodes": names[:high], "sensitivity": ranked}
        work.write(target, names[:high])
        return found


class _Work:
    """One float model, prepared and calibrated, and what is made of it in `folder`."""

    def __init__(self, source: Path, folder: Path, images: torch.Tensor):
        onnx = needs("onnx", "onnxscript", "onnxruntime")
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self.folder, self.images, self.model = folder, images, folder / "prepared.onnx"
        quant_pre_process(source, self.model)
        graph = onnx.load(self.model).graph
        weights = {one.name: list(one.dims) for one in graph.initializer}
        products = [node for node in graph.node if node.op_type in _TYPES]
        first = next(node.name for node in products if INPUT in node.input)
        self.shapes = {
            node.name: next(weights[name] for name in node.input if name in weights)
            for node in products
            if node.name != first and any(name in weights for name in node.input)
        }
        self.floats = [node.name for node in products if node.name not in self.shapes]

    def write(self, target: Path, kept: list[str] | None = None, only: str | None = None) -> None:
        """The quantized model, the nodes `kept` in float, or all but `only`. The ranges are found once."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        quantize_static(
            self.model,
            target,
            _Reader(self.images),
            calibration_cache_path=self.folder / "ranges.json",
            calibrate_method=CalibrationMethod.MinMax,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=_TYPES,
            nodes_to_quantize=[only] if only else list(self.shapes),
            nodes_to_exclude=[*self.floats, *(kept or [])],
            # The output of a MatMul goes to an addition in float: quantized, it would be rounded for nothing.
            extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
        written = needs("onnx").load(target)
        strip(written)
        write_bytes(target, written.SerializeToString(deterministic=True))

    def sensitivity(self) -> list[dict[str, Any]]:
        """Each node quantized alone: the most sensitive first."""
        inputs = self.images[:: max(1, len(self.images) // PROBED)][:PROBED].numpy()
        wanted, alone = self._logits(self.model, inputs), self.folder / "alone.onnx"
        rows = []
        with progress(total=len(self.shapes), desc="sensitivity", unit="node") as bar:
            for name, shape in self.shapes.items():
                self.write(alone, only=name)
                error = float(np.square(self._logits(alone, inputs) - wanted).mean())
                snr = 10 * np.log10(float(np.square(wanted).mean()) / max(error, 1e-20))
                rows.append({"node": name, "weight": shape, "snr_db": round(float(snr), 2)})
                bar.update()
        return sorted(rows, key=lambda row: row["snr_db"])

    @staticmethod
    def _logits(path: Path, inputs: np.ndarray) -> np.ndarray:
        return load_graph(path).logits(torch.from_numpy(inputs)).numpy()


class _Reader:
    """onnxruntime.quantization.CalibrationDataReader, which is not imported for its name alone."""

    def __init__(self, images: torch.Tensor):
        self._images = iter(images.numpy())

    def __iter__(self):
        return self

    def __next__(self):
        return {INPUT: next(self._images)[None]}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self, None)
