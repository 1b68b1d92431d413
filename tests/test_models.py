"""What a float model must be like is checked as it is loaded; one class becomes two."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_segformer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation, SegformerConfig, SegformerForImageClassification

from segquant import models
from segquant.base.config import Eval, Recipe
from segquant.base.errors import ModelError, SegquantError
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.engines.load import load_quantized
from segquant.evaluation.predict import predict
from segquant.quant.build import build


@pytest.fixture
def folder(tmp_path):
    models.save(small_segformer(3, stages=2), tmp_path / "model")
    return tmp_path / "model"


def change(folder, **keys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_channels": 4}, "takes 4 channels: only RGB images work"),
        ({"backbone_config": {"num_channels": 1}}, "takes 1 channels"),
        ({"id2label": {"1": "a", "2": "b", "3": "c"}}, "id2label in config.json whose ids are not 0, 1, 2"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "id2label in config.json whose ids are not 0, 1, 2"),
        ({"id2label": {"a": "a", "b": "b", "c": "c"}}, "id2label in config.json whose ids are not 0, 1, 2"),
        ({"id2label": ["a", "b", "c"]}, "id2label in config.json whose ids are not 0, 1, 2"),
        ({"id2label": {"0": "door", "1": "sky", "2": "door"}}, "names two classes 'door': rename one"),
        ({"id2label": {str(i): f"c{i}" for i in range(256)}}, "has 256 classes: 1 to 255 work"),
        ({"id2label": None, "num_labels": 1000}, "has 1000 classes: 1 to 255 work"),
        ({"id2label": 5}, "id2label in config.json whose ids are not 0, 1, 2"),
        ({"id2label": None, "num_labels": "x"}, "has 'x' classes: 1 to 255 work"),
        ({"architectures": ["SegformerForImageClassification"]}, "is a SegformerForImageClassification: give a model"),
        ({"architectures": "SegformerForImageClassification"}, "is a SegformerForImageClassification: give a model"),
        ({"quantization_config": {"quant_method": "torchao"}}, "is already quantized: give the float model"),
        ({"depths": [1, 2]}, "the file lacks segformer.stages.1.blocks.1."),
        ({"id2label": {"0": "a", "1": "b"}}, "decode_head.classifier.* is .3.* in the file and .2.* by config.json"),
        ({"reshape_last_stage": False}, "does not run: "),
    ],
)
def test_a_config_that_would_make_every_figure_wrong_is_refused(keys, message, folder):
    change(folder, **keys)
    with pytest.raises(ModelError, match=message) as caught:
        models.load(folder)
    assert f"model '{folder}' " in str(caught.value) and "\n" not in str(caught.value)


def test_a_model_without_a_segmentation_head_is_refused(tmp_path):
    SegformerForImageClassification(SegformerConfig(depths=[1] * 4)).save_pretrained(tmp_path)
    with pytest.raises(
        ModelError, match="is a SegformerForImageClassification: give a model for semantic segmentation"
    ):
        models.load(tmp_path)


def test_more_weights_than_config_json_names_are_refused(folder):
    """A B5's weights under a B2's config.json would be a model that nobody trained."""
    deeper = small_segformer(3, stages=2)
    deeper.config.depths = [2, 2]
    models.save(type(deeper)(deeper.config), folder)
    change(folder, depths=[1, 1])
    with pytest.raises(ModelError, match="the file has segformer.stages.0.blocks.1.*, which has no place"):
        models.load(folder)


def test_keys_that_change_what_transformers_returns_do_not_count(folder):
    change(folder, return_dict=False, output_attentions=True, output_hidden_states=True, image_size=None)
    model = models.load(folder)
    assert model(models.noise(model)).logits.shape[1] == 3


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_git_lfs_pointer_says_what_to_do(name, folder):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match=f"has a Git LFS pointer in place of {name}: run git lfs pull"):
        models.load(folder)


def test_an_adapter_beside_the_weights_is_refused(folder):
    (folder / "adapter_config.json").write_bytes(b"{}")
    with pytest.raises(
        ModelError, match="has an adapter .adapter_config.json., which would be left out: merge it into"
    ):
        models.load(folder)


def test_an_index_that_is_a_git_lfs_pointer_says_so_too(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(SegquantError, match="model.safetensors.index.json is a Git LFS pointer: run git lfs pull"):
        models.load(folder)


def test_an_index_without_metadata_says_what_it_lacks(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match='model.safetensors.index.json has no "metadata", an object that may be empty'):
        models.load(folder)


def test_code_of_a_model_is_not_run(folder, monkeypatch):
    """transformers asks on standard input, and runs it after y."""
    change(
        folder, model_type="theirs", auto_map={"AutoConfig": "theirs.C", "AutoModelForSemanticSegmentation": "theirs.M"}
    )
    (folder / "theirs.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelError, match="brings code of its own .auto_map., and no code of a model is run"):
        models.load(folder)
    assert not (folder / "ran").exists()


def test_pixels_that_cannot_be_followed_are_refused_with_the_model(folder):
    (folder / "preprocessor_config.json").write_text('{"image_mean": null}')
    with pytest.raises(ModelError, match="image_mean must be three finite numbers, not null"):
        models.load(folder)


def test_weights_that_give_no_numbers_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    state["decode_head.batch_norm.running_var"][0] = -1.0
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="gives logits that are no numbers"):
        models.load(folder)


@pytest.mark.parametrize(("name", "other"), [("background", "other"), ("LABEL_0", "LABEL_1")])
def test_the_second_class_gets_a_name_of_its_own(name, other, one_class):
    change(one_class, id2label={"0": name})
    assert sorted(models.load(one_class).config.id2label.values()) == sorted([name, other])


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_that_are_no_floats_are_refused_by_name(dtype, folder):
    """transformers would cast codes without their scales."""
    state = load_file(folder / "model.safetensors")
    name = "decode_head.classifier.weight"
    state[name] = (100 * state[name]).to(dtype)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"has {name} as .*: only float weights work"):
        models.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(value, folder):
    state = load_file(folder / "model.safetensors")
    state["decode_head.batch_norm.running_var"][0] = value
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="has NaN or infinity in decode_head.batch_norm.running_var"):
        models.load(folder)


@pytest.fixture
def one_class(tmp_path):
    """A model with a single class and a logit of both signs."""
    model = small_segformer(1, stages=2)
    with torch.no_grad():
        model.decode_head.classifier.weight *= 20
        logits = model(models.noise(model)).logits
        model.decode_head.classifier.bias.fill_(float(-logits.median()))
    model.config.id2label, model.config.label2id = {0: "road"}, {"road": 0}
    models.save(model, tmp_path / "one")
    return tmp_path / "one"


def classes(model):
    """The classes of all pixels of two scenes."""
    predictions = predict(model, rows(open_source("scenes", "validation", 2)), "fixed-64x96-v1", Eval())
    return np.concatenate([prediction.classes.numpy().ravel() for prediction in predictions])


def twin_of(folder):
    """The same decision by a softmax over two classes, in plain transformers: logits of -l/2 and +l/2."""
    plain = AutoModelForSemanticSegmentation.from_pretrained(folder)
    layer = plain.decode_head.classifier
    layer.weight = torch.nn.Parameter(torch.cat([-layer.weight / 2, layer.weight / 2]))
    layer.bias = torch.nn.Parameter(torch.cat([-layer.bias / 2, layer.bias / 2]))
    return plain.eval().requires_grad_(False)


def test_a_model_of_one_class_is_one_of_two_as_its_sigmoid_decides(one_class):
    model = models.load(one_class)
    assert (model.config.num_labels, model.config.id2label) == (2, {0: "background", 1: "road"})
    assert 0.1 < classes(model).mean() < 0.9  # both occur
    assert (classes(model) == classes(twin_of(one_class))).mean() > 0.9999


@pytest.mark.parametrize("weights", ["float32", "int8", "int4"])
def test_its_artifacts_have_two_classes_as_well(weights, one_class, tmp_path):
    build(one_class, Recipe(weights), tmp_path / "artifact", torch.device("cpu"))
    quantized = load_quantized(tmp_path / "artifact")
    assert quantized.config.id2label == {0: "background", 1: "road"}
    agreement = (classes(quantized) == classes(models.load(one_class))).mean()
    assert agreement > (0.9999 if weights == "float32" else 0.8)


class OddlyNamed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.last = torch.nn.Conv2d(3, 1, 1)
        self.config = SimpleNamespace(num_labels=1, id2label={0: "road"})

    def forward(self, pixels):
        return SimpleNamespace(logits=self.last(pixels))


def test_a_last_layer_that_is_not_found_is_refused():
    with pytest.raises(ModelError, match="model 'm' has one class, and its last layer is not found"):
        models.two_classes("m", OddlyNamed())


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_weights_that_are_no_file_are_one_line(kind, tmp_path):
    """A named pipe was waited for without end."""
    small_segformer(2).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    if kind == "pipe":
        os.mkfifo(tmp_path / "model.safetensors")
    else:
        (tmp_path / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="has .*model.safetensors, which cannot be read: it is no file"):
        models.load(tmp_path)
