"""One artifact's accuracy as the files that the pipeline keeps: metrics JSON, per-class CSV, pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from segquant import models
from segquant.data.label_map import load_label_map
from segquant.data.palette import palette
from segquant.errors import UnavailableError
from segquant.evaluation.loop import Evaluation, evaluate
from segquant.evaluation.reference import read_reference
from segquant.files import replacing, write_json, write_text
from segquant.quant.artifacts import load_artifact
from segquant.quant.tensors import CASTS


def score(
    artifact: str | Path,
    rows: Iterable[dict],
    total: int,
    classes: list[str],
    *,
    protocol: str,
    reference: str | Path,
    label_map: str | None,
    device: torch.device,
    batch_size: int,
    pictures: int,
    name: str,
) -> tuple[dict[str, Any], Evaluation | None]:
    """Evaluate an artifact on `total` labelled rows: the content of metrics/METHOD.json, and all of it.

    A method that could not be quantized gives `{"unavailable": reason}` and None.
    """
    try:
        loaded = load_artifact(artifact, device)
    except UnavailableError as error:
        return {"unavailable": str(error)}, None
    result = evaluate(
        loaded.model,
        rows,
        total,
        num_classes=len(classes),
        protocol=protocol,
        batch_size=batch_size,
        normalization=models.normalization(artifact),
        label_map=load_label_map(label_map, loaded.model.config.num_labels, classes),
        reference=read_reference(reference),
        pictures=pictures,
        desc=f"evaluate {name}",
    )
    info, scores = loaded.info, result.scores
    recipe = info["recipe"]
    metrics = {
        "algorithm": "cast" if recipe["weights"] in CASTS else recipe["algorithm"],
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
    return metrics, result


def write_scores(
    metrics: dict[str, Any],
    result: Evaluation | None,
    classes: list[str],
    metrics_path: str | Path,
    classes_path: str | Path,
    pictures_folder: str | Path,
) -> None:
    """Write metrics JSON, the per-class CSV, and the pictures as PNGs in the ADE20K palette.

    The pictures' folder gets a copy of the metrics, so that the report can depend on one folder for
    whatever methods there are.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "name", "pixels", "iou", "accuracy"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(class_rows(result, classes))
    write_text(classes_path, text.getvalue())
    with replacing(pictures_folder) as part:
        part.mkdir()
        for name, prediction in (result.pictures if result else {}).items():
            image = Image.fromarray(prediction)
            image.putpalette(palette().tobytes())
            image.save(part / f"{name}.png", "PNG")
        write_json(part / "metrics.json", metrics)
    write_json(metrics_path, metrics)


def class_rows(result: Evaluation | None, classes: list[str]) -> list[dict[str, Any]]:
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
