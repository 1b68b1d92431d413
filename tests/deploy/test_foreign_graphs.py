"""ONNX files of any origin: what they say of pixels, classes and batches is followed, or refused in one line.

The graphs give their input back as logits, so that a pixel's class is its brightest channel, by hand.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from conftest import ROOT
from onnx import TensorProto, helper
from PIL import Image

from segquant.base import config
from segquant.base.config import Graph
from segquant.base.errors import DataError, ModelError, UnavailableError
from segquant.base.files import digest, write_json
from segquant.data import label_map
from segquant.engines.load import load, load_graph
from segquant.engines.runtime import Runtime
from segquant.evaluation import graph_file
from segquant.evaluation.graph_file import score_graph
from segquant.quant.artifacts import seal

ENGINES = ["onnxruntime", "openvino"]
NAMES = ["red", "green", "blue"]
PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1}


def graph(path, batch="B", kind=TensorProto.FLOAT, size=("H", "W"), **metadata):
    node = helper.make_node("Identity", ["x"], ["y"])
    ends = [helper.make_tensor_value_info(name, kind, [batch, 3, *size]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node], "foreign", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=json.dumps(value))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    """Three pictures of noise whose labels are their brightest channels."""
    folder = tmp_path_factory.mktemp("channels")
    rng = np.random.default_rng(0)
    for i in range(3):
        pixels = 3 * rng.integers(0, 85, (32, 64, 3), dtype=np.uint8) + np.arange(3, dtype=np.uint8)  # no ties
        for kind, content in (("images", pixels), ("labels", pixels.argmax(2).astype(np.uint8))):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(content).save(folder / kind / f"val_{i}.png")
    (folder / "classes.txt").write_text("\n".join(NAMES))
    params = config.load(ROOT / "params.yaml")
    keys = {"images": "images/{split}_*.png", "annotations": "labels/{split}_*.png"}
    data = replace(params.data, source=str(folder), classes=str(folder / "classes.txt"), **keys)
    return replace(params, data=data, protocol="fixed-32x64-v1")


def score(params, path, engine, **options):
    return score_graph(params, onnx=path, data=params.data.source, split="val", engine=engine, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("batch", ["B", 1, 2, 5])
def test_any_batch_of_floats_of_32_or_16_bits(engine, kind, batch, params, tmp_path):
    path = graph(tmp_path / "graph.onnx", batch, kind, preprocessing=PLAIN, labels=NAMES)
    result = score(params, path, engine)
    assert result["n_images"] == 3 and result["mean_iou"] == 1.0


@pytest.mark.parametrize("engine", ENGINES)
def test_channels_are_flipped_as_the_file_says(engine, params, tmp_path):
    flipped = graph(tmp_path / "graph.onnx", preprocessing={**PLAIN, "channels": "BGR"}, labels=NAMES[::-1])
    assert score(params, flipped, engine)["mean_iou"] == 1.0
    green = {"mean": [0, -999, 0], "std": [1, 1, 1], "scale": 1}
    assert score(params, graph(tmp_path / "green.onnx", preprocessing=green), engine)["mean_accuracy"] == 1 / 3


@pytest.mark.parametrize("engine", ENGINES)
def test_classes_are_matched_by_the_names_in_the_file(engine, params, tmp_path, caplog):
    path = graph(tmp_path / "graph.onnx", preprocessing=PLAIN, labels=["green", "red", "blue"])
    assert score(params, path, engine)["mean_iou"] < 0.5
    assert score(params, path, engine, label_map="by_position")["mean_iou"] == 1.0
    caplog.clear()
    label_map._warn_nameless.cache_clear()
    score(params, graph(tmp_path / "nameless.onnx", preprocessing=PLAIN), engine)
    assert caplog.text.count("the 3 classes of the model have no names: equal class ids are taken for the same") == 1
    path = graph(tmp_path / "other.onnx", preprocessing=PLAIN, labels=["red", "green", "yellow"])
    with pytest.raises(DataError, match="class 2 is 'yellow' in the model but 'blue' in the data set"):
        score(params, path, engine)


@pytest.mark.parametrize(
    ("kind", "metadata", "message"),
    [
        (TensorProto.UINT8, {}, "it must take pixels .B, 3, H, W., floats of 32 or 16 bits"),
        (TensorProto.DOUBLE, {}, "it must take pixels .B, 3, H, W., floats of 32 or 16 bits"),
        (TensorProto.FLOAT, {"labels": ["red", "green"]}, "metadata `labels` that are not a JSON list of 3 names"),
        (TensorProto.FLOAT, {"labels": {"0": "red"}}, "metadata `labels` that are not a JSON list of 3 names"),
        (TensorProto.FLOAT, {"labels": [0, 1, 2]}, "metadata `labels` that are not a JSON list of 3 names"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_followed_is_one_line(engine, kind, metadata, message, tmp_path):
    with pytest.raises(ModelError, match=message) as caught:
        load_graph(graph(tmp_path / "graph.onnx", kind=kind, **metadata), engine)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_that_is_filled_up_gives_the_same_logits(engine, tmp_path):
    images = torch.randn(3, 3, 32, 64)
    model = load_graph(graph(tmp_path / "graph.onnx", batch=2), engine)
    assert torch.equal(model(images).logits, images)


def test_a_graph_in_an_engines_own_format_is_one_line(params, tmp_path):
    """The engine loads it, and the ONNX package cannot."""
    import onnxruntime
    import openvino

    path = graph(tmp_path / "graph.onnx", preprocessing=PLAIN, labels=["red", "green", "blue"])
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(tmp_path / "graph.ort")
    onnxruntime.InferenceSession(path, options)
    openvino.save_model(openvino.convert_model(path), tmp_path / "graph.xml")
    for name, engine in (("graph.ort", "onnxruntime"), ("graph.xml", "openvino")):
        with pytest.raises(ModelError, match=f"{name} is no ONNX file, but of the engine's own format: give the .onnx"):
            score(params, tmp_path / name, engine)


def test_a_package_that_is_missing_is_not_the_graphs_fault(params, tmp_path, monkeypatch):
    def needs(name):
        raise UnavailableError(f"{name} not installed")

    monkeypatch.setattr(graph_file, "needs", needs)
    path = graph(tmp_path / "graph.onnx", preprocessing=PLAIN, labels=["red", "green", "blue"])
    with pytest.raises(UnavailableError, match="^onnx not installed$"):
        score(params, path, "onnxruntime")


FINE = {"id2label": {"0": "red", "1": "green", "2": "blue"}}


@pytest.mark.parametrize(
    ("config", "recipe", "message"),
    [
        (FINE, {}, None),
        (FINE, {"engine": "foo"}, "recipe.engine 'foo' is unknown: choose one of onnxruntime, openvino"),
        (FINE, {"engine": "runtime"}, "recipe.engine 'runtime' is unknown: choose one of onnxruntime, openvino"),
        (FINE, {"compute": None}, "recipe.compute 'None' is unknown: choose one of float32, bfloat16"),
        ([], {}, "has no id2label for the graph's 3 classes"),
        ({"id2label": ["red", "green", "blue"]}, {}, "has no id2label for the graph's 3 classes"),
        ({"id2label": {"0": "red", "a": "green", "2": "blue"}}, {}, "has no id2label for the graph's 3 classes"),
        ({"id2label": {"0": "red", "1": "green"}}, {}, "has no id2label for the graph's 3 classes"),
        ({"id2label": {"0": "red", "1": "green", "2": "red"}}, {}, "names two classes 'red'"),
    ],
)
def test_a_changed_artifact_of_a_graph_is_one_line_though_its_digests_are_right(config, recipe, message, tmp_path):
    graph(tmp_path / "model.onnx")
    write_json(tmp_path / "config.json", config)
    counts = {"parameters": 1, "float32_bytes": 4, "quantized_fraction": 0.0}
    seal(tmp_path, Graph(engine="onnxruntime", weights="float32"), counts)
    info = json.loads((tmp_path / "quantization.json").read_text())
    info["recipe"] |= recipe
    del info["digest"]
    write_json(tmp_path / "quantization.json", {**info, "digest": digest(info)})
    if message is None:
        assert load(tmp_path).model.config.id2label == dict(enumerate(NAMES))
        return
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def other_output(path, node, kind, channels, **attributes):
    """A graph of one node that gives something else than its input."""
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3, "H", "W"]),
        helper.make_tensor_value_info("y", kind, ["B", channels, "H", "W"]),
    ]
    body = helper.make_graph([helper.make_node(node, ["x"], ["y"], **attributes)], "other", ends[:1], ends[1:])
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 13)], ir_version=10), path)
    return path


@pytest.mark.parametrize("engine", ENGINES)
def test_class_maps_and_single_channels_are_no_logits(engine, tmp_path):
    classes = other_output(tmp_path / "classes.onnx", "ArgMax", TensorProto.INT64, 1, axis=1)
    single = other_output(tmp_path / "single.onnx", "ReduceMax", TensorProto.FLOAT, 1, axes=[1])
    for path in (classes, single):
        with pytest.raises(ModelError, match="class maps or a single class: scores need the logits of each class"):
            load_graph(path, engine)


@pytest.mark.parametrize(("engine", "place"), [*((engine, "graph") for engine in ENGINES), ("onnxruntime", "function")])
def test_ranges_of_a_whole_batch_do_not_reach_the_score(engine, place, params, tmp_path):
    """quantize_dynamic's node takes one range for all images of a batch: the bright one would darken the others."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["squared"]),
        helper.make_node("DynamicQuantizeLinear", ["squared"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 3, "H", "W"]) for name in "xy"]
    opsets, functions = [helper.make_opsetid("", 13)], []
    if place == "function":
        functions = [helper.make_function("own", "Square", ["x"], ["y"], nodes, opsets)]
        nodes = [helper.make_node("Square", ["x"], ["y"], domain="own")]
        opsets = [*opsets, helper.make_opsetid("own", 1)]
    model = helper.make_model(
        helper.make_graph(nodes, "dynamic", ends[:1], ends[1:]),
        opset_imports=opsets,
        functions=functions,
        ir_version=10,
    )
    helper.set_model_props(model, {"preprocessing": json.dumps(PLAIN), "labels": json.dumps(NAMES)})
    onnx.save(model, tmp_path / "dynamic.onnx")
    folder = tmp_path / "set"
    shutil.copytree(params.data.source, folder)
    dark = np.zeros((32, 64, 3), np.uint8) + np.array([0, 0, 1], np.uint8)  # blue only by its own range
    Image.fromarray(dark).save(folder / "images" / "val_0.png")
    Image.fromarray(dark.argmax(2).astype(np.uint8)).save(folder / "labels" / "val_0.png")
    params = replace(params, data=replace(params.data, source=str(folder)))
    assert score(params, tmp_path / "dynamic.onnx", engine)["overall_accuracy"] > 0.9  # 0.66 in a batch


def test_logits_that_are_not_of_each_image_are_refused():
    """OpenVINO runs a graph that takes (B, H, W, 3) on (B, 3, H, W), and gives nothing."""
    for shape in ((0, 11, 0, 0), (1, 11, 2, 2), (2, 11)):
        model = Runtime(lambda pixels, shape=shape: np.zeros(shape, np.float32), "openvino", "1", 1)
        model.batch, model.size, model.dtype = None, None, torch.float32
        with pytest.raises(ModelError, match=f"it gives logits {'x'.join(map(str, shape))} for 2 images"):
            model(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [(32, 64), (45, 50)])
def test_a_fixed_size_is_taken_as_it_is_and_named_where_the_protocol_has_another(engine, size, params, tmp_path):
    path = graph(tmp_path / "graph.onnx", size=size, preprocessing=PLAIN)
    protocol = f"fixed-{size[0]}x{size[1]}-v1"
    assert score(params, path, engine, protocol=protocol)["n_images"] == 3
    with pytest.raises(ModelError, match=f"the graph takes {size[0]}x{size[1]} alone.*: choose {protocol}"):
        score(params, path, engine, protocol="fixed-96x64-v1")
