"""`eval.on_error: skip` leaves broken files out on every route, and lists them; `stop` names the first in one line."""

import json
import logging
import sys

import pytest
import torch
import yaml
from conftest import ROOT, ade20k_folder
from PIL import Image

from segquant.base import config
from segquant.base.config import Recipe
from segquant.base.errors import DataError
from segquant.data.shards import open_shards, read_manifest
from segquant.evaluation.graph_file import score_graph
from segquant.evaluation.reference import write_reference
from segquant.evaluation.score import score
from segquant.predictions import predict_pictures
from segquant.quant.build import build
from segquant.runs import run
from stages import prepare_shards

PROTOCOL = "fixed-64x64-v1"


@pytest.fixture
def place(tmp_path):
    """`data` in ADE20K's layout: of four validation images one is broken, one lacks a label and one has a broken label;
    of two training images, the first is broken."""
    data = ade20k_folder(ade20k_folder(tmp_path / "data", "validation", 4), "training", 2)
    images, labels = (sorted((data / kind / "validation").iterdir()) for kind in ("images", "annotations"))
    images[0].write_bytes(images[0].read_bytes()[:300])
    labels[1].unlink()
    labels[2].write_bytes(b"")
    sorted((data / "images/training").iterdir())[0].write_bytes(b"")
    return tmp_path


@pytest.fixture
def untimed(monkeypatch):
    monkeypatch.setattr("segquant.lanes.benchmark", lambda *_: {"unavailable": "not asked for"})


def params(place, on_error):
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["eval"]["on_error"] = on_error
    tree["speed"] = {"input_size": [64, 64], "batch_sizes": [1], "runs": 2, "warmup": 1}
    tree["quant"]["methods"]["int4"]["calibration"]["images"] = 2
    (place / "params.yaml").write_text(yaml.safe_dump(tree))
    return config.load(place / "params.yaml")


def listed(skipped):
    """The files of the validation split that errors name, by their numbers."""
    return [error.split(" ")[0].rpartition("/")[2] for error in skipped]


SKIPPED = ["ADE_validation_00000000.jpg", "ADE_validation_00000001.jpg", "ADE_validation_00000002.png"]


def test_run(place, tiny_folder, untimed, caplog):
    options = {"model": str(tiny_folder), "data": [str(place / "data")], "split": "validation", "protocol": PROTOCOL}
    options |= {"methods": ["float32", "int4"], "output": place / "out"}
    with pytest.raises(DataError, match="00000001.jpg has no label: add .*eval.on_error: skip"):
        run(params(place, "stop"), **options)
    assert not (place / "out").exists()
    with caplog.at_level(logging.WARNING):
        results = run(params(place, "skip"), **options)
    for metrics in results.values():
        assert listed(metrics["skipped"]) == SKIPPED and metrics["n_images"] == 1
    assert results == json.loads((place / "out/results.json").read_text())
    assert results["int4"]["quantize"]["calibration_images"] == 2
    assert any("ADE_training_00000000.jpg is not a readable image" in text for text in caplog.messages)
    assert any("3 of the 4 images of split 'validation' were skipped" in text for text in caplog.messages)


def test_the_stages_of_the_pipeline(place, tiny_folder, monkeypatch):
    params(place, "skip")
    tree = yaml.safe_load((place / "params.yaml").read_text())
    tree["data"]["source"] = str(place / "data")
    (place / "params.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["prepare_shards", "--output", "shards"])
    prepare_shards.main()
    manifest = read_manifest("shards")
    assert [split["images"] for split in manifest["splits"].values()] == [1, 1]
    build(tiny_folder, Recipe("int8"), place / "int8", torch.device("cpu"))
    shards, settings = open_shards(place / "shards", "validation"), params(place, "skip").eval
    options = {"protocol": PROTOCOL, "settings": settings, "partial": place / "partial"}
    write_reference(tiny_folder, shards, place / "reference", **options)
    metrics, _ = score(
        place / "int8", shards, manifest["classes"], reference=place / "reference", label_map=None, **options
    )
    assert listed(metrics["skipped"]) == SKIPPED and metrics["n_images"] == 1


def test_evaluate(place, exported_model):
    options = {"onnx": exported_model / "onnx/float32.onnx", "data": str(place / "data"), "split": "validation"}
    with pytest.raises(DataError, match="00000001.jpg has no label"):
        score_graph(params(place, "stop"), protocol=PROTOCOL, **options)
    scores = score_graph(params(place, "skip"), protocol=PROTOCOL, **options)
    assert listed(scores["skipped"]) == SKIPPED and scores["n_images"] == 1


def test_predict(place, tiny_folder):
    (place / "photos").mkdir()
    for name in "ac":
        Image.new("RGB", (40, 30), (90, 90, 90)).save(place / f"photos/{name}.jpg")
    (place / "photos/b.jpg").write_bytes(b"")
    Image.new("RGB", (41, 30)).save(place / "photos/d.png")
    build(tiny_folder, Recipe("float32"), place / "float32", torch.device("cpu"))
    options = [[str(place / "photos")], place / "float32", place / "out", PROTOCOL]
    with pytest.raises(DataError, match="b.jpg is not a readable image"):
        predict_pictures(params(place, "stop"), *options)
    assert not (place / "out").exists()
    results = predict_pictures(params(place, "skip"), *options)
    assert ["skipped" in result for result in results] == [False, True, False, False]
    assert results[1]["picture"] == str(place / "photos/b.jpg") and "b.jpg is not a readable" in results[1]["skipped"]
    assert sorted(path.name for path in (place / "out").glob("[!.]*")) == ["a.png", "c.png", "d.png"]
    tree = yaml.safe_load((place / "params.yaml").read_text())
    tree["data"]["max_pixels"] = 1200
    (place / "params.yaml").write_text(yaml.safe_dump(tree))
    results = predict_pictures(config.load(place / "params.yaml"), *options)
    assert "d.png has 41x30 pixels, more than data.max_pixels, 1200" in results[3]["skipped"]


def test_calibration_images_among_the_scored_ones_are_counted_in_one_line(place, tiny_folder, untimed, caplog):
    data = ade20k_folder(place / "good", "validation", 3)
    options = {"model": str(tiny_folder), "data": [str(data)], "split": "validation", "protocol": PROTOCOL}
    with caplog.at_level(logging.WARNING):
        run(params(place, "stop"), **options, train_split="validation", methods=["int4"], output=place / "out")
    (warning,) = [text for text in caplog.messages if "calibrate" in text]
    assert warning.startswith(
        "2 of the 3 images of split 'validation', such as ADE_validation_00000000, are also among"
    )
