"""Check the real model on real photographs against 30 lines of plain PyTorch that share no code with segquant."""

import shutil
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from transformers import SegformerForSemanticSegmentation

from benchmarks import engines
from segquant.base import config
from segquant.base.classes import CITYSCAPES
from segquant.base.config import Data, Qat, Recipe
from segquant.data.calibration import calibration_batch, spread
from segquant.data.label_map import match_classes
from segquant.data.rows import rows
from segquant.data.sources import open_images, open_source
from segquant.deploy.build import build_graph
from segquant.deploy.onnx_export import export_onnx
from segquant.engines.load import load
from segquant.evaluation.loop import evaluate
from segquant.methods import Job, kind
from segquant.quant.artifacts import load_quantized
from segquant.quant.build import build
from segquant.training.qat import Material, build_trained

MAP = ROOT / "data/label_maps/cityscapes_to_camvid.yaml"
PROTOCOL = "fixed-384x512-v1"
TO_CAMVID = [3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10]


def plain_miou(real, limit):
    model = SegformerForSemanticSegmentation.from_pretrained(real / "segformer-b0-cityscapes").eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    intersection, union = np.zeros(11), np.zeros(11)
    for path in sorted((real / "camvid" / "val").glob("*.png"))[:limit]:
        image = Image.open(path).convert("RGB").resize((512, 384), Image.BILINEAR)
        pixels = (torch.from_numpy(np.array(image)).float() / 255 - mean) / std
        label = np.array(Image.open(real / "camvid" / "valannot" / path.name))
        with torch.no_grad():
            logits = model(pixels.permute(2, 0, 1)[None]).logits
        up = torch.nn.functional.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
        prediction = np.array(TO_CAMVID)[up[0].argmax(0).numpy()]
        for c in range(11):
            predicted, labelled = (prediction == c) & (label != 11), label == c
            intersection[c] += (predicted & labelled).sum()
            union[c] += (predicted | labelled).sum()
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(intersection / union))


def our_miou(real, recipe, limit, folder, images=None, material=None):
    model = real / "segformer-b0-cityscapes"
    if recipe.train:
        build_trained(model, recipe, folder, torch.device("cpu"), images, material, folder.with_suffix(".pt"))
    else:
        build(model, recipe, folder, torch.device("cpu"), images)
    source = open_source(str(real / "camvid"), "val", limit)
    result = evaluate(
        load_quantized(folder),
        rows(source),
        len(source),
        num_classes=11,
        protocol=PROTOCOL,
        label_map=match_classes(CITYSCAPES, source.classes, MAP),
    )
    return result.scores.mean_iou


@pytest.mark.parametrize("limit", [8, pytest.param(51, marks=pytest.mark.slow)])
def test_float32_matches_plain_pytorch_and_int8_comes_close(real, limit, tmp_path):
    expected = plain_miou(real, limit)
    float32 = our_miou(real, Recipe("float32"), limit, tmp_path / "float32")
    int8 = our_miou(real, config.load(ROOT / "params.yaml").quant.methods["int8"], limit, tmp_path / "int8")
    print(f"{limit} photographs: plain {expected:.4f}, float32 {float32:.4f}, int8 {int8:.4f}")
    assert abs(float32 - expected) < 0.0005
    assert abs(float32 - int8) < 0.003


def test_the_metric_on_ade20k_matches_an_independent_computation(real, tiny):
    """All 135 pairs and a random model of 150 classes, counted from the PNG files without a confusion matrix."""
    root = real / "ADEChallengeData2016"
    sources = [open_source(str(root), split) for split in ("training", "validation")]
    pairs = chain(*map(rows, sources))
    result = evaluate(tiny, pairs, 135, num_classes=150, protocol="fixed-128x128-v1", pictures=135)
    assert result.n_images == len(result.pictures) == 135
    intersection, predicted, labelled = np.zeros((3, 150))
    for path in root.glob("annotations/*/*.png"):
        label, prediction = np.array(Image.open(path)), result.pictures[path.stem]
        truth, said = label[label > 0].astype(int) - 1, prediction[label > 0]
        for counts, classes in ((intersection, truth[truth == said]), (labelled, truth), (predicted, said)):
            counts += np.bincount(classes, minlength=150)
    with np.errstate(invalid="ignore"):
        iou, accuracy = intersection / (labelled + predicted - intersection), intersection / labelled
    print(f"mIoU {result.scores.mean_iou:.12f}, independent {np.nanmean(iou):.12f}")
    assert abs(result.scores.mean_iou - np.nanmean(iou)) < 1e-9
    assert abs(result.scores.mean_accuracy - np.nanmean(accuracy)) < 1e-9
    assert abs(result.scores.overall_accuracy - intersection.sum() / labelled.sum()) < 1e-9


# method: (most points of mIoU lost, most megabytes with 150 classes)
LIMITS = {"int8": (0.2, 4.3), "int4": (0.5, 2.5), "int3": (1.8, 2.1), "int2": (5.0, 1.6)}
RECIPES = dict(config.load(ROOT / "params.yaml").quant.methods)
RECIPES["int3"] = replace(RECIPES["int4"], weights="int3")


@pytest.mark.slow
def test_every_bit_width_keeps_to_its_limits(real, tmp_path):
    """Methods of params.yaml and int3, calibrated on the train photographs of CamVid, scored on its 51 val photographs."""
    train = open_source(str(real / "camvid"), "train")
    float32 = our_miou(real, Recipe("float32"), 51, tmp_path / "float32")
    for method, (max_loss, max_size) in LIMITS.items():
        indices = spread(len(train), RECIPES[method].calibration_images)
        images = calibration_batch((train[i] for i in indices), PROTOCOL) if indices else None
        loss = 100 * (float32 - our_miou(real, RECIPES[method], 51, tmp_path / method, images))
        megabytes = (tmp_path / method / "model.safetensors").stat().st_size / 1e6
        print(f"{method}: {loss:.2f} points lost, {megabytes:.2f} MB")
        assert loss <= max_loss and megabytes <= max_size


# method: (steps, most points of mIoU lost, most megabytes with 150 classes)
TRAINED_LIMITS = {"int4": (500, 0.2, 2.5), "int3": (1000, 0.7, 2.1), "int2": (2000, 2.0, 1.6)}


@pytest.mark.slow
@pytest.mark.parametrize("method", TRAINED_LIMITS)
def test_training_on_photographs_alone_keeps_to_its_limits(method, real, tmp_path):
    """A copy of CamVid's train photographs without labels; about 3, 6 and 12 minutes on two cores."""
    shutil.copytree(real / "camvid" / "train", tmp_path / "photos")
    photos = open_images(Data(str(tmp_path / "photos")), "train")
    steps, max_loss, max_size = TRAINED_LIMITS[method]
    recipe = replace(RECIPES[method], train=Qat(steps=steps))
    images = calibration_batch((photos[i] for i in spread(len(photos), recipe.calibration_images)), PROTOCOL)
    float32 = our_miou(real, Recipe("float32"), 51, tmp_path / "float32")
    material = Material(photos, photos.classes, "photographs", PROTOCOL)
    loss = 100 * (float32 - our_miou(real, recipe, 51, tmp_path / method, images, material))
    megabytes = (tmp_path / method / "model.safetensors").stat().st_size / 1e6
    print(f"{method} after {steps} steps: {loss:.2f} points lost, {megabytes:.2f} MB")
    assert loss <= max_loss and megabytes <= max_size


# method of benchmarks/engines.py: (most points of mIoU lost, most megabytes)
GRAPH_LIMITS = {
    "onnx_float32": (0.02, 15.1),
    "onnx_int8": (0.3, 4.4),
    "openvino_int8": (0.5, 5.0),
    "int8_static": (0.3, 4.4),
    "int8_static_qat": (0.3, 4.4),
}


@pytest.mark.slow
def test_int8_graphs_lose_little(real, tmp_path):
    """About 9 minutes on two cores, of which 4 train 4 epochs on photographs without labels."""
    model, train = real / "segformer-b0-cityscapes", open_source(str(real / "camvid"), "train")
    label_map = match_classes(CITYSCAPES, train.classes, MAP)
    export_onnx(model, tmp_path / "onnx")
    methods = config.build(config.Quant, {"method": "float32", "methods": engines.METHODS}).methods
    float32 = our_miou(real, Recipe("float32"), 51, tmp_path / "float32")
    source, losses = open_source(str(real / "camvid"), "val"), {}

    def miou(runtime, rows_):
        result = evaluate(runtime, rows_, len(rows_), num_classes=11, protocol=PROTOCOL, label_map=label_map)
        return 100 * result.scores.mean_iou

    for name, (max_loss, max_size) in GRAPH_LIMITS.items():
        recipe = methods[name]
        calibration_rows = [train[i] for i in spread(len(train), recipe.calibration_images)]
        images = calibration_batch(calibration_rows, PROTOCOL) if calibration_rows else None
        if recipe.train:
            material = Material(train, train.classes, "photographs", PROTOCOL)
            checkpoint = tmp_path / "training.pt"
            inputs = (model, recipe, tmp_path / name, torch.device("cpu"), images, Path())
            kind(recipe).build(Job(*inputs, material=material, checkpoint=checkpoint))
        else:
            score = partial(miou, rows_=calibration_rows)
            build_graph(model, recipe, tmp_path / name, tmp_path / "onnx", images, score)
        loaded = load(tmp_path / name)
        loss = losses[name] = 100 * float32 - miou(loaded.model, list(rows(source)))
        print(f"{name}: {loss:.2f} points lost, {loaded.size_bytes / 1e6:.2f} MB")
        assert loss <= max_loss and loaded.size_bytes <= 1e6 * max_size
    assert losses["int8_static_qat"] <= losses["int8_static"]
