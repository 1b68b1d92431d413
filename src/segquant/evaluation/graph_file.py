"""The accuracy of an ONNX file, whoever made it: `segquant evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from segquant.base.config import Params, check_protocol
from segquant.base.errors import ConfigError, ModelError
from segquant.data.label_map import class_names, match_classes
from segquant.data.preprocessing import IMAGENET
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.engines.extras import needs
from segquant.engines.load import load_graph
from segquant.evaluation.loop import evaluate

log = logging.getLogger(__name__)


def _batch(path: str | Path, size: int) -> int:
    """The batch size; 1 where the graph takes the range of its activations from the whole batch, as ONNX Runtime's
    quantize_dynamic makes it: an image's classes would depend on the images beside it."""
    onnx = needs("onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's, of a file of ONNX Runtime's or OpenVINO's own format
        raise ModelError(f"{path} is no ONNX file, but of the engine's own format: give the .onnx file") from error
    parts = [model.graph, *model.functions]
    return 1 if any(node.op_type.startswith("DynamicQuantize") for node in _nodes(parts)) else size


def _nodes(parts: Iterable[Any]) -> Iterator[Any]:
    """The nodes of graphs and functions, and of the graphs in them, such as branches."""
    for part in parts:
        for node in part.node:
            yield node
            for attribute in node.attribute:
                yield from _nodes([*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])])


def score_graph(
    params: Params,
    *,
    onnx: str | Path,
    data: str,
    split: str,
    engine: str = "onnxruntime",
    label_map: str | None = None,
    protocol: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Score an ONNX file of any SegFormer on a data set: the accuracy keys, protocol, n_images, engine and version.

    The file's metadata `preprocessing`, as `segquant export onnx` writes it, say what is done to pixels; without it
    they are normalized by ImageNet's mean and standard deviation. Raises ModelError for a file that is no SegFormer's.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {limit}")
    protocol = check_protocol(protocol or params.protocol)
    model = load_graph(onnx, engine)
    if model.preprocessing is None:
        log.warning("%s has no metadata `preprocessing`: pixels are normalized by ImageNet's mean and std", onnx)
    source, skipped = open_source(replace(params.data, source=data), split, limit, params.eval.on_error), []
    result = evaluate(
        model,
        rows(source, skipped if params.eval.on_error == "skip" else None),
        len(source),
        num_classes=len(source.classes),
        protocol=protocol,
        preprocessing=model.preprocessing or IMAGENET,
        settings=replace(params.eval.on(engine), batch_size=_batch(onnx, model.batch or params.eval.batch_size)),
        label_map=match_classes(class_names(model.config), source.classes, label_map),
    )
    return {
        "mean_iou": result.scores.mean_iou,
        "mean_accuracy": result.scores.mean_accuracy,
        "overall_accuracy": result.scores.overall_accuracy,
        "n_images": result.n_images,
        "protocol": protocol,
        "engine": f"{model.engine} {model.version}",
        **({"skipped": skipped + result.skipped} if skipped or result.skipped else {}),
    }
