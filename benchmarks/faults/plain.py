"""What a plain script makes of a model and labelled images: Pillow, transformers, PyTorch's interpolation, numpy."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from faults.place import PROTOCOL, SPLIT


def pairs(source: Path) -> list[tuple[bytes, bytes]]:
    """The encoded images and labels of a folder, an archive or a table."""
    if tables := list(source.glob("*.parquet")):
        import pyarrow.parquet as pq

        rows = pq.read_table(tables[0]).to_pylist()
        return [(row["image"]["bytes"], row["annotation"]["bytes"]) for row in rows]
    if source.is_file():
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if Path(name).parent.name == SPLIT]
            files = {Path(name): archive.read(name) for name in names}
    else:
        files = {path.relative_to(source): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    images, labels = (
        {path.stem: data for path, data in sorted(files.items()) if path.parent == Path(kind, SPLIT)}
        for kind in ("images", "annotations")
    )
    if not images.keys() <= labels.keys():
        raise ValueError("an image has no label")
    return [(images[stem], labels[stem]) for stem in images]


def _plain(logits: Callable[[Any], Any], pairs: list[tuple[bytes, bytes]], processor: Any) -> dict[str, float]:
    import torch
    from PIL import Image

    matrix = np.zeros((150, 150), np.int64)
    for image, label in pairs:
        truth = np.asarray(Image.open(io.BytesIO(label)))
        photo = Image.open(io.BytesIO(image))
        if truth.ndim != 2 or truth.shape != (photo.height, photo.width):
            raise ValueError("the label is no map of the image")
        pixels = processor(photo.convert("RGB"), return_tensors="pt")["pixel_values"].float()
        upsampled = torch.nn.functional.interpolate(logits(pixels), truth.shape, mode="bilinear", align_corners=False)
        predicted = upsampled.argmax(1)[0].numpy()
        counted = truth != 255
        np.add.at(matrix, (truth[counted].astype(int), predicted[counted]), 1)
    same, union = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    accuracy, present = float(same.sum() / matrix.sum()), union > 0
    return {
        "mean_iou": float((same[present] / union[present]).mean()),
        "overall_accuracy": accuracy,
        "n": len(pairs),
    }


def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    height, width = map(int, re.findall(r"\d+", PROTOCOL)[:2])
    options = {"size": {"height": height, "width": width}, "do_resize": True, "do_center_crop": False, "do_pad": False}
    return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False, **options)


def plain_model(model: Path, data: Path) -> dict[str, float]:
    import torch
    from transformers import AutoModelForSemanticSegmentation

    with warnings.catch_warnings(action="ignore"), torch.inference_mode():
        network = AutoModelForSemanticSegmentation.from_pretrained(model, dtype=torch.float32, trust_remote_code=False)
        network.eval()
        return _plain(lambda pixels: network(pixels).logits, pairs(data), _processor(model))


def plain_graph(path: Path, data: Path, model: Path) -> dict[str, float]:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    run = lambda pixels: torch.from_numpy(session.run(None, {name: pixels.numpy()})[0])  # noqa: E731
    return _plain(run, pairs(data), _processor(model))
