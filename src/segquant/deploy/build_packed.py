"""A PyTorch artifact's codes as the artifact of an engine: what a quantize stage does for methods of quant.packed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from segquant import models
from segquant.base.config import Auto, Method, Packed, Recipe, build
from segquant.base.errors import ModelError
from segquant.base.failures import missing
from segquant.base.files import replacing, write_bytes
from segquant.base.ranks import ranks
from segquant.data.preprocessing import Preprocessing, read_preprocessing
from segquant.deploy.build import Fit, needs_images, probe
from segquant.deploy.graph import Pixels, exported, to_onnx
from segquant.deploy.onnx_export import compare, packed_graph
from segquant.deploy.packed import float_twin
from segquant.deploy.packed_int8 import coded, pack_int8
from segquant.deploy.pt2e import calibrated
from segquant.engines.extras import unavailable
from segquant.engines.load import load_graph
from segquant.quant.artifacts import describe_artifact, load_artifact, save_missing, seal

if TYPE_CHECKING:
    import onnx
    from torch import nn


def build_packed(
    artifact: str | Path,
    source: Recipe | Auto,
    recipe: Packed,
    folder: str | Path,
    images: torch.Tensor | None = None,
    fit: Fit | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """Make the artifact `folder` of a packed method from the one of its `source`: model.onnx, config.json and others.

    `images` (N, 3, H, W) are calibrated on; `fit` also trains an int8 graph, in the training named `run`. Gives what
    `quant.build.build` gives, but no time that the source took.
    Raises ModelError for an artifact of another recipe, or a graph that is another model on the engine.
    """
    info = describe_artifact(artifact)
    if _deciding(build(Method, info["recipe"])) != _deciding(source):
        raise ModelError(f"{artifact} is not of the recipe of {recipe.source} in params.yaml: quantize it again")
    reason = {"unavailable": words} if (words := unavailable(recipe)) else {}
    reason = reason or {kind: f"{recipe.source} {kind}: {words}" for kind, words in missing(info).items()}
    if reason:
        save_missing(recipe, reason, folder)
        return reason
    needs_images(recipe, images)
    start = time.perf_counter()
    model, preprocessing = load_artifact(artifact).model, read_preprocessing(artifact)
    algorithm, int8 = "qat" if source.train else source.algorithm, None
    if recipe.activations:
        twin, algorithm = float_twin(model), f"{algorithm}+{recipe.algorithm}"
        int8 = fit(twin, images, coded(model, twin)) if fit else calibrated(twin, images)
    if ranks()[0]:  # the first of the processes that trained together writes
        return {}
    with replacing(folder) as part:
        part.mkdir()
        path = part / "model.onnx"
        if recipe.activations:
            _write_int8(path, int8, model, twin, preprocessing)
        else:
            _write(path, packed_graph(model, info["recipe"], preprocessing))
            compare(path, Pixels(model), "packed", recipe.engine)
        seconds = time.perf_counter() - start
        model.config.save_pretrained(part)
        models.save_preprocessor(part, artifact)
        counts = {key: info[key] for key in ("parameters", "float32_bytes", "quantized_fraction")}
        seal(part, recipe, {**({"run": run} if run else {}), "algorithm": algorithm, **counts})
        probe(part, (1, 3, 64, 96) if images is None else images[:1].shape)
    return {"seconds": round(seconds, 3), "calibration_images": 0 if images is None else len(images)}


def _deciding(recipe: Method) -> list[Any]:
    """What an artifact of the recipe depends on: all but its training's upkeep."""
    return [replace(recipe, train=None), recipe.train and recipe.train.result()]


def _write_int8(path: Path, int8: nn.Module, model: nn.Module, twin: nn.Module, preprocessing: Preprocessing) -> None:
    """`int8`, the graph that algorithm pt2e made of a quantized model's float twin, with the model's codes.

    Raises ModelError where the engine's logits are not those of the graph with int8 weights.
    """
    graph = to_onnx(exported(int8), twin.config, preprocessing)
    plain = path.with_name("int8.onnx")
    _write(plain, graph)
    pack_int8(graph.graph, model, twin)
    _write(path, graph)
    compare(path, load_graph(plain).logits, "packed")
    plain.unlink()


def _write(path: Path, graph: onnx.ModelProto) -> None:
    write_bytes(path, graph.SerializeToString(deterministic=True))
