"""Every check of a model's output fails on NaN: an argmax over NaN would be a class like any other."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_segformer

from segquant import models
from segquant.base.config import Eval, Recipe, Sensitivity, Speed
from segquant.base.errors import ModelError
from segquant.data.preprocessing import IMAGENET
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.evaluation import sensitivity, speed
from segquant.evaluation.predict import predict
from segquant.quant import build

NAN = float("nan")
MESSAGE = "gives logits that are no numbers"


class Broken(torch.nn.Module):
    """A model of which one logit of one pixel is NaN."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, pixels):
        logits = self.model(pixels).logits.clone()
        logits[0, 0, 0, 0] = NAN
        return SimpleNamespace(logits=logits)


@pytest.fixture
def scenes():
    return list(rows(open_source("scenes", "validation", 1)))


def test_a_prediction(tiny, scenes):
    with pytest.raises(ModelError, match=f"the model {MESSAGE}"):
        list(predict(Broken(tiny), scenes, "fixed-64x64-v1", Eval()))


def test_the_sensitivity_of_a_layer(tiny, scenes, monkeypatch):
    monkeypatch.setattr(sensitivity, "_quantized_weight", lambda layer, recipe: torch.full_like(layer.weight, NAN))
    options = Sensitivity(bits=(2,), images=1)
    with pytest.raises(ModelError, match=f"proj at 2 bits {MESSAGE}"):
        sensitivity.sensitivity(
            tiny, scenes, options, num_classes=150, protocol="fixed-64x64-v1", preprocessing=IMAGENET
        )


def test_an_artifact(tiny_folder, tmp_path, monkeypatch):
    def to_nan(model, *_):
        model.decode_head.classifier.bias.data[0] = NAN
        return []

    monkeypatch.setattr(build, "quantize", to_nan)
    with pytest.raises(ModelError, match=MESSAGE):
        build.build(tiny_folder, Recipe("float32"), tmp_path / "artifact", torch.device("cpu"))
    assert not (tmp_path / "artifact").exists()


def test_a_compiled_model_is_not_timed(tiny, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: Broken(model))
    lane = speed._lane(tiny, {}, "compile", torch.randn(1, 3, 64, 64), Speed(runs=2, warmup=1))
    assert lane["unavailable"] == "torch.compile failed: the compiled model gives logits that are no numbers"


@pytest.fixture(scope="module")
def graph(exported_model, tmp_path_factory):
    """A graph whose last weights are NaN, and the model that it was before."""
    onnx = pytest.importorskip("onnx")
    from segquant.deploy.graph import Pixels

    path = tmp_path_factory.mktemp("nan") / "float32.onnx"
    model = onnx.load(exported_model / "onnx/float32.onnx")
    classifier = next(entry for entry in model.graph.initializer if list(entry.dims) == [150, 32, 1, 1])
    classifier.CopyFrom(onnx.numpy_helper.from_array(np.full((150, 32, 1, 1), NAN, np.float32), classifier.name))
    onnx.save(model, path)
    return path, Pixels(models.load(exported_model / "model"), False)


def test_an_export(graph):
    from segquant.deploy.onnx_export import compare

    path, pixels = graph
    with pytest.raises(ModelError, match=f"the float16 ONNX model {MESSAGE}"):
        compare(path, pixels, "float16")


def test_a_graph_that_is_an_artifact(graph, monkeypatch):
    from segquant.deploy import build as deploy_build
    from segquant.engines.load import load_graph

    monkeypatch.setattr(deploy_build, "load", lambda folder: SimpleNamespace(model=load_graph(folder)))
    with pytest.raises(ModelError, match=MESSAGE):
        deploy_build.probe(graph[0], (1, 3, 64, 96))


def test_a_search_for_sensitive_nodes(graph):
    from segquant.deploy.qdq import _Quantizer

    with pytest.raises(ModelError, match=f"the graph {MESSAGE}"):
        _Quantizer._logits(graph[0], np.zeros((1, 3, 64, 64), np.float32))


def test_a_trained_graph(monkeypatch):
    from segquant.deploy import finetune

    trained = Broken(small_segformer(5, stages=2))
    trained.graph = trained
    monkeypatch.setattr(finetune, "converted", lambda graph: lambda pixels: graph(pixels).logits)
    with pytest.raises(ModelError, match=f"the converted graph {MESSAGE}"):
        finetune._as_trained(trained, torch.zeros(1, 3, 64, 64))
