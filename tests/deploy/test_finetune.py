"""Quantization-aware training of a graph: what was trained is what is converted, however the run went."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graphs import RECIPES, float_model, images

from segquant import models
from segquant.base.classes import CAMVID
from segquant.base.config import Finetune
from segquant.base.errors import ConfigError, DataError, ModelError, SegquantError
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.deploy import finetune
from segquant.deploy.finetune import crop_of
from segquant.deploy.pt2e import Trainable, converted, prepared
from segquant.engines.load import load
from segquant.methods import Job, kind
from segquant.training import losses
from segquant.training.losses import distillation
from segquant.training.qat import Material

CPU = torch.device("cpu")
TRAIN = Finetune(epochs=3, batch_size=2, crop=64, lr=3e-4, warmup=1, workers=0, checkpoint_every=2, validate_every=100)
RECIPE = replace(RECIPES["pt2e"], train=TRAIN)
ROWS = list(rows(open_source("scenes", "train", 4)))
MATERIAL = Material(ROWS, CAMVID, "four scenes", "fixed-96x96-v1")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("baseline")
    models.save(float_model(), folder)
    return folder


def made(baseline, folder, recipe=RECIPE, material=MATERIAL):
    checkpoint = folder.with_suffix(".pt")
    job = Job(baseline, recipe, folder, CPU, images(), Path(), material=material, checkpoint=checkpoint)
    return kind(recipe).build(job)


@pytest.fixture(scope="module")
def graph():
    return prepared(float_model(), images(), trained=True)


def test_training_brings_the_graph_nearer_and_the_converted_one_is_the_trained_one(graph):
    """Fake-quantized and converted predictions agree on at least 99.9 % of pixels, as the converted graph is meant to."""
    teacher, pictures = float_model(), images(8)
    model = Trainable(graph)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=1e-4)

    def loss():
        return distillation(model(pictures).logits, teacher(pictures).logits)

    with torch.no_grad():
        before = float(loss())
    for _ in range(8):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    with torch.no_grad():
        assert float(loss()) < 0.9 * before
        trained = model(pictures).logits
        result = converted(model.graph)(pictures)
    assert (result.argmax(1) == trained.argmax(1)).double().mean() >= 0.999
    torch.testing.assert_close(result, trained, atol=1e-4 * float(trained.abs().max()), rtol=0)


def ranges(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith(".scale")}


def test_ranges_of_activations_stay_those_of_calibration():
    model = Trainable(prepared(float_model(), images(), trained=True))
    start = ranges(model)
    for _ in range(2):
        model(3 * images()).logits.sum().backward()
    assert all(torch.equal(value, start[name]) for name, value in ranges(model).items())


def test_ranges_of_weights_follow_the_weights_to_the_end():
    model = Trainable(prepared(float_model(), images(), trained=True))
    start = ranges(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
        model(images())
    torch.testing.assert_close(
        {name: value for name, value in ranges(model).items() if value.numel() > 1},
        {name: 1.5 * value for name, value in start.items() if value.numel() > 1},
        rtol=1e-5,
        atol=2**-12,
    )
    assert all(torch.equal(value, start[name]) for name, value in ranges(model).items() if value.numel() == 1)


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_with_the_same_bytes(baseline, tmp_path, monkeypatch):
    times = made(baseline, tmp_path / "whole")
    assert times["calibration_images"] == 4 and times["seconds"] > 0
    count = itertools.count()

    def dying(*arguments):
        if next(count) == 3:
            raise KeyboardInterrupt
        return distillation(*arguments)

    monkeypatch.setattr(losses, "distillation", dying)
    with pytest.raises(KeyboardInterrupt):
        made(baseline, tmp_path / "killed")
    assert not (tmp_path / "killed").exists() and (tmp_path / "killed.pt").exists()
    monkeypatch.setattr(losses, "distillation", distillation)
    made(baseline, tmp_path / "killed")
    whole, killed = ((tmp_path / name / "model.onnx").read_bytes() for name in ("whole", "killed"))
    assert whole == killed
    info = json.loads((tmp_path / "whole" / "quantization.json").read_text())
    assert "3 epochs of training towards float32" in info["run"]
    assert load(tmp_path / "whole").model(images(1)).logits.isfinite().all()
    with pytest.raises(SegquantError, match="is the checkpoint of another run"):
        made(baseline, tmp_path / "killed", replace(RECIPE, train=replace(TRAIN, epochs=4)))


def test_a_converted_graph_that_is_not_the_trained_one_is_refused(baseline, tmp_path, monkeypatch):
    def other(graph):
        result = converted(graph)
        return lambda pixels: -result(pixels)

    monkeypatch.setattr(finetune, "converted", other)
    with pytest.raises(ModelError, match="of the converted graph's classes are those that were trained"):
        made(baseline, tmp_path / "out", replace(RECIPE, train=replace(TRAIN, epochs=1)))
    assert not (tmp_path / "out").exists()


def test_averaged_weights_are_refused():
    with pytest.raises(ConfigError, match="train of a graph takes no ema"):
        Finetune(epochs=1, ema=0.9)


def test_a_crop_that_no_graph_takes_and_no_images_are_one_line(baseline, tmp_path):
    with pytest.raises(ConfigError, match="a graph trains on crops in multiples of 32, not 80: give train.crop"):
        crop_of(replace(RECIPE, train=replace(TRAIN, crop=80)), MATERIAL.protocol)
    with pytest.raises(DataError, match="there are no images to train on"):
        made(baseline, tmp_path / "out", material=MATERIAL._replace(rows=[]))
