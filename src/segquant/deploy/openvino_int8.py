"""Static int8 for OpenVINO by NNCF."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from segquant.base.config import Graph
from segquant.base.errors import ModelError
from segquant.engines.extras import needs
from segquant.engines.openvino import by_position, core


def quantize_nncf(source: str | Path, folder: Path, images: torch.Tensor, recipe: Graph) -> dict[str, Any]:
    """Quantize the float32 ONNX model `source` to model.xml and model.bin in `folder`.

    `images` (N, 3, H, W) give the ranges. Without `recipe.ignored_types` this is NNCF's default preset. With ignored
    types, nodes of these types stay float and activations may have a zero point (NNCF's preset `mixed`).

    Returns the number of `quantizers` in the graph. Raises ModelError for what only the graph shows: an ignored type
    that the model lacks, and ranges by position, which NNCF gives the inputs of a SegFormer's depthwise convolutions.
    """
    os.environ.setdefault("NNCF_CI", "1")  # turns NNCF's telemetry off
    nncf, openvino = needs("nncf", "openvino", "onnx"), needs("openvino")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would change every handler's level too
    model = core().read_model(source)
    types = sorted({op.get_type_name() for op in model.get_ops()})
    unknown = [name for name in recipe.ignored_types if name not in types]
    if unknown:
        raise ModelError(f"ignored_types: the model has no node of type '{unknown[0]}': choose from {', '.join(types)}")
    options: dict[str, Any] = {}
    if recipe.ignored_types:
        scope = nncf.IgnoredScope(types=list(recipe.ignored_types))
        options = {"preset": nncf.QuantizationPreset.MIXED, "ignored_scope": scope}
    data = nncf.Dataset(list(images[:, None].numpy()))
    quantized = nncf.quantize(model, data, subset_size=len(images), **options)
    if by_position(quantized):
        raise ModelError(
            "NNCF gives each position of an image a range of its own, which OpenVINO computes wrongly: set "
            "ignored_types, with GroupConvolution for a SegFormer"
        )
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return {"quantizers": sum(op.get_type_name() == "FakeQuantize" for op in quantized.get_ops())}
