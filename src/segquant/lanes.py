"""A quantize stage of the pipeline: any method of params.yaml, on the pipeline's shards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from segquant import models
from segquant.base.config import Graph, Params
from segquant.base.ranks import ranks
from segquant.data.calibration import calibration_images, spread
from segquant.data.label_map import load_label_map
from segquant.data.shards import read_manifest, read_rows
from segquant.engines.extras import refused_protocol, unavailable
from segquant.quant.artifacts import save_unavailable
from segquant.quant.build import build


def quantize_lane(
    params: Params,
    method: str,
    baseline: str | Path,
    shards: str | Path,
    exports: str | Path,
    folder: str | Path,
    trained: str | Path | None = None,
    recording: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, Any]:
    """Make the artifact `folder` of a method; gives its times, nothing on other ranks than the first.

    `exports` is the folder of stage export_onnx, `trained` an artifact that is taken where it came out of the very
    same training, `recording` gives a training its record. Raises as the builders do.
    """
    (recipe,) = params.quant.choose([method]).values()
    graph = isinstance(recipe, Graph)
    reason = (unavailable(recipe) or refused_protocol(params.protocol)) if graph else None
    if reason:
        save_unavailable(recipe, reason, folder)
        return {"unavailable": reason}
    # Imported where they are used, as a lane starts a process and most need neither: 1.5 s.
    if recipe.train:
        from segquant.training.qat import Route, from_shards

        route = None
        if graph:
            from segquant.deploy.finetune import build_finetuned, run_name
            from segquant.engines.runtimes import load

            route = Route(run_name, build_finetuned, load)
        return from_shards(params, method, baseline, shards, folder, trained, recording, route)
    if ranks()[0]:
        return {}
    images, count = None, recipe.calibration_images
    if count:
        images = calibration_images(shards, count, params.protocol, models.normalization(baseline))
    if graph:
        from segquant.deploy.build import build_graph

        return build_graph(baseline, recipe, folder, exports, images, _points(params, recipe, baseline, shards))
    return build(baseline, recipe, folder, models.device(params.eval.device), images)


def _points(params: Params, recipe: Graph, baseline: str | Path, shards: str | Path) -> Callable | None:
    """What tells how much mIoU is lost on the calibration images, where the recipe wants to know."""
    if recipe.max_drop is None:
        return None
    from segquant.deploy.finetune import points

    manifest = read_manifest(shards)
    chosen = set(spread(manifest["splits"]["train"]["images"], recipe.calibration_images))
    rows: Sequence[dict] = [row for i, row in enumerate(read_rows(shards, "train")) if i in chosen]
    classes = manifest["classes"]
    label_map = load_label_map(params.data.label_map, models.load(baseline).config.num_labels, classes)
    return points(params, rows, classes, baseline, label_map)
