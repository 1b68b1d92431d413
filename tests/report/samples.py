"""Results as `dvc repro` leaves them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segquant.base.classes import ADE20K
from segquant.base.config import Qat, Recipe
from segquant.base.files import write_json
from segquant.data.images import decode_annotation
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.evaluation import metric
from segquant.evaluation.counts import write_counts
from segquant.report.results import ACCURACY

SPEED = {
    "latency_ms": {"p50": 210.0, "p90": 230.0, "n": 10},
    "images_per_second": 4.7,
    "load_seconds": 0.1,
    "relative_to_float32": {"median": 1.05, "min": 0.9, "max": 1.2},
    "peak_memory_bytes": 300e6,
    "engine": "eager",
    "batch_size": 1,
    "input_size": [512, 512],
    "device": "cpu",
    "threads": 2,
    "engine_version": "2.13.0",
}
LANE = {
    "engine": "eager",
    "batch_size": 1,
    **{k: SPEED[k] for k in ("latency_ms", "images_per_second", "relative_to_float32")},
}
SPEED["lanes"] = [
    LANE,
    {**LANE, "batch_size": 4, "images_per_second": 5.25},
    {**LANE, "engine": "compile", "compile_seconds": 31.4},
    {"engine": "compile", "batch_size": 4, "unavailable": "torch.compile failed: no compiler"},
]
HARDWARE = {"processor": "Testium 9", "instructions": ["avx2"], "cores": 2, "gpu": None}


def metrics(miou, size):
    return {
        "algorithm": "hqq",
        "mean_iou": miou,
        "mean_accuracy": 0.8,
        "overall_accuracy": 0.9,
        "agreement": 0.99,
        "n_images": 2,
        "protocol": "fixed-64x64-v1",
        "size_bytes": size,
        "compression": 1e7 / size,
        "quantized_fraction": 0.65,
        "bits_per_parameter": 8.0,
    }


RECIPES = {
    "float32": Recipe("float32"),
    "int8": Recipe("int8"),
    "float8_dynamic": Recipe("float8", activations="float8"),
    "int2": Recipe("int2", 32, "gptq"),
    "int2_qat": Recipe("int2", 32, "gptq", train=Qat(steps=10)),
}
METHODS = ["float32", "int8", "float8_dynamic", "int2"]


def write_metrics(folder: Path) -> Path:
    """Write metrics, speed and quantize times of float32, int2 and a method that is unavailable."""
    content = {
        "float32": metrics(0.70, 10_000_000),
        "int2": metrics(0.55, 2_000_000),
        "float8_dynamic": {"unavailable": "no CUDA"},
    }
    for name, value in content.items():
        write_json(folder / ACCURACY.format(name), value)
        if "unavailable" not in value:
            write_json(folder / "speed" / f"{name}.json", SPEED)
    write_json(folder / "quantize" / "int2.json", {"seconds": 12.34, "calibration_images": 32})
    return folder


CLASSES_CSV = "id,name,pixels,iou,accuracy\n4,tree,300,{},0.5\n3,floor,100,0.25,\n"


def write_predictions(folder: Path, methods: dict[str, float], images: int = 2) -> list[dict]:
    """Write the predictions of each method, {method: its IoU of trees}: PNGs, classes.csv and counts by image.

    A prediction is the scene's truth with as many rows wrong. Gives the scenes' rows.
    """
    pictures = list(rows(open_source("scenes", "validation", images)))
    for method, iou in methods.items():
        target = folder / "predictions" / method
        target.mkdir(parents=True, exist_ok=True)
        (target / "classes.csv").write_text(CLASSES_CSV.format(iou))
        counted, whole = [], metric.new_confusion(150)
        for row in pictures:
            label = decode_annotation(row["annotation"])
            wrong = label.copy()
            wrong[: round((1 - iou) * len(label))] = 4
            Image.fromarray(np.where(wrong == 255, 0, wrong).astype(np.uint8)).save(target / f"{row['id']}.png")
            cells = metric.cells(metric.update(whole, *map(torch.from_numpy, (wrong, label))))
            counted += [(f"{row['id']}-{n}", cells) for n in range(20)]  # enough images for an interval
        write_counts(target / "confusion.parquet", counted, ADE20K, "fixed-64x64-v1")
    return pictures
