"""One artifact's accuracy as the files that the pipeline keeps: metrics JSON, per-class CSV, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segquant import models
from segquant.base.config import BASELINE, Eval
from segquant.base.errors import DataError, UnavailableError
from segquant.base.failures import failure, missing
from segquant.base.files import csv_text, replacing, sha256, write_json, write_text
from segquant.base.ranks import ranks
from segquant.data.label_map import class_names, match_classes
from segquant.data.palette import palette
from segquant.data.preprocessing import read_preprocessing
from segquant.data.shards import Shard, shard_rows
from segquant.engines.load import load
from segquant.evaluation.counts import write_counts
from segquant.evaluation.loop import Evaluation, Tally, summary, tally
from segquant.evaluation.predict import prepared
from segquant.evaluation.reference import read_reference
from segquant.evaluation.shardwise import over_shards
from segquant.quant.artifacts import describe_artifact
from segquant.quant.tensors import CASTS


def try_score(artifact: str | Path, *arguments: Any, **options: Any) -> tuple[dict[str, Any], Evaluation | None]:
    """`score` of the artifact in a folder named METHOD; where it fails, {"failed": the reason} and None.

    Raises DataError, as every method is scored on these images, and as `failures.failure`, also where float32 fails.
    """
    method = Path(artifact).name
    try:
        return score(artifact, *arguments, **options)
    except DataError:
        raise
    except Exception as error:  # engines raise many types
        return failure(method, error, needed=method == BASELINE), None


def score(
    artifact: str | Path,
    shards: Sequence[Shard],
    classes: Sequence[str],
    *,
    protocol: str,
    reference: str | Path,
    label_map: str | None,
    settings: Eval,
    partial: Path,
) -> tuple[dict[str, Any], Evaluation | None]:
    """Evaluate an artifact of any engine on labelled shards: metrics/accuracy/METHOD.json's content, and all of it.

    `partial` keeps finished shards until the caller removes it (`shardwise.kept`). Graphs know neither autocast nor
    torch.compile: they ignore these two settings. A method that could not be quantized gives the reason
    (`failures.missing`) and None. Under torchrun rank 0 gets the figures, the others get ({}, None).
    """
    if reason := missing(describe_artifact(artifact)):
        return reason, None
    try:
        loaded = load(artifact, models.device(settings.device))
    except UnavailableError as error:  # its engine is not installed here
        return {"unavailable": str(error)}, None
    engine = loaded.info["recipe"].get("engine")
    settings = settings.on(engine)
    preprocessing = read_preprocessing(artifact)
    to_data = match_classes(class_names(loaded.model.config), classes, label_map)
    model = prepared(loaded.model, settings)
    before = list(accumulate((shard.rows for shard in shards), initial=0))

    def work(number: int, shard: Shard, done: Callable[[int], Any]) -> bytes:
        return tally(
            model,
            shard_rows(shard),
            num_classes=len(classes),
            protocol=protocol,
            settings=settings,
            preprocessing=preprocessing,
            label_map=to_data,
            reference=read_reference(reference, shard),
            pictures=settings.pictures - before[number],
            origin=str(shard.path),
            done=done,
        ).to_bytes()

    identity = [
        loaded.info,
        len(classes),
        protocol,
        preprocessing.to_json(),
        None if to_data is None else to_data.tolist(),
        [sha256(Path(reference) / shard.path.name) for shard in shards],
        next(model.parameters()).device.type,
        settings.batch_size,
        settings.compile,
        settings.dtype,
        settings.on_error,
        settings.pictures,
    ]
    parts = [
        Tally.from_bytes(data)
        for data in over_shards(work, shards, partial, identity, f"evaluate {Path(artifact).name}")
    ]
    if ranks()[0]:
        return {}, None
    result = summary(parts)
    info, scores = loaded.info, result.scores
    metrics = {
        "algorithm": _algorithm(info),
        **({"engine": engine} if engine else {}),
        "mean_iou": scores.mean_iou,
        "mean_accuracy": scores.mean_accuracy,
        "overall_accuracy": scores.overall_accuracy,
        "agreement": result.agreement,
        "n_images": result.n_images,
        "protocol": protocol,
        "size_bytes": loaded.size_bytes,
        "compression": info["float32_bytes"] / loaded.size_bytes,
        "quantized_fraction": info["quantized_fraction"],
        "bits_per_parameter": 8 * loaded.size_bytes / info["parameters"],
    }
    if settings.dtype != "float32" or settings.compile:
        metrics |= {"dtype": settings.dtype, "compile": settings.compile}
    skipped = [error for shard in shards for error in shard.skipped] + result.skipped
    if skipped:
        metrics["skipped"] = skipped
    return metrics, result


def _algorithm(info: Mapping[str, Any]) -> str:
    recipe = info["recipe"]
    if "from" in recipe:
        return info["algorithm"]
    if recipe["weights"] in CASTS:
        return "cast"
    algorithm = "qat" if recipe["train"] else recipe.get("algorithm", "gptq")
    return f"auto+{algorithm}" if recipe["weights"] == "auto" else algorithm


def write_scores(
    metrics: dict[str, Any],
    result: Evaluation | None,
    classes: Sequence[str],
    *,
    metrics_path: str | Path,
    classes_path: str | Path,
    pictures_folder: str | Path | None = None,
    counts_path: str | Path | None = None,
) -> None:
    """Write metrics JSON, the per-class CSV, and where they are asked for each image's confusion and the pictures.

    The pictures' folder gets PNGs in the ADE20K palette, each image's confusion (`counts.write_counts`) and a copy of
    the metrics and of the CSV, so that the report can depend on one folder for whatever methods there are.
    """
    table = classes_csv(result, classes)
    if pictures_folder:
        with replacing(pictures_folder) as part:
            part.mkdir()
            for name, prediction in (result.pictures if result else {}).items():
                image = Image.fromarray(prediction)
                image.putpalette(palette().tobytes())
                image.save(part / f"{name}.png", "PNG")
            write_json(part / "metrics.json", metrics)
            write_text(part / "classes.csv", table)
            if result:
                write_counts(part / "confusion.parquet", result.images, classes, metrics["protocol"])
    if counts_path and result:
        write_counts(counts_path, result.images, classes, metrics["protocol"])
    write_text(classes_path, table)
    write_json(metrics_path, metrics)


def classes_csv(result: Evaluation | None, classes: Sequence[str]) -> str:
    """A line for each of `class_rows`, under a heading."""
    header = ("id", "name", "pixels", "iou", "accuracy")
    return csv_text(([row[key] for key in header] for row in class_rows(result, classes)), header)


def class_rows(result: Evaluation | None, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Every class that occurs or is predicted: id, name, labelled pixels, IoU, accuracy (None where undefined)."""
    if result is None:
        return []
    scores = result.scores
    return [
        {
            "id": int(i),
            "name": classes[i],
            "pixels": int(scores.pixels[i]),
            "iou": float(scores.iou[i]),
            "accuracy": None if np.isnan(scores.accuracy[i]) else float(scores.accuracy[i]),
        }
        for i in np.nonzero(~np.isnan(scores.iou))[0]
    ]
