"""Static int8 for OpenVINO, by NNCF."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from segquant.base.config import Graph
from segquant.base.errors import ConfigError
from segquant.engines.extras import needs


def quantize_nncf(source: str | Path, folder: Path, images: torch.Tensor, recipe: Graph) -> dict[str, Any]:
    """Write the float32 ONNX model `source`, quantized, to model.xml and model.bin in `folder`.

    Without `recipe.ignored_types` it is NNCF's default preset, which destroys a SegFormer and fits no size but the
    images': what depthwise convolutions take gets a range for each place instead of each channel. With them, nodes of
    those types stay float and activations may have a zero point (NNCF's preset `mixed`). Raises ConfigError for a type
    that the model has not.
    """
    os.environ.setdefault("NNCF_CI", "1")  # it would tell its makers of each use
    nncf, openvino = needs("nncf", "openvino", "onnx"), needs("openvino")
    logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level would set every handler there too
    model = openvino.Core().read_model(source)
    types = sorted({op.get_type_name() for op in model.get_ops()})
    unknown = [name for name in recipe.ignored_types if name not in types]
    if unknown:
        raise ConfigError(f"ignored_types has '{unknown[0]}', of which the model has none: it has {', '.join(types)}")
    repaired: dict[str, Any] = {}
    if recipe.ignored_types:
        scope = nncf.IgnoredScope(types=list(recipe.ignored_types))
        repaired = {"preset": nncf.QuantizationPreset.MIXED, "ignored_scope": scope}
    data = nncf.Dataset(list(images[:, None].numpy()))
    quantized = nncf.quantize(model, data, subset_size=len(images), **repaired)
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return {"quantizers": sum(op.get_type_name() == "FakeQuantize" for op in quantized.get_ops())}
