"""Methods of quant.packed: the codes of another method's artifact, run as a graph."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from graphs import float_model, images
from onnx import TensorProto, helper, numpy_helper

from segquant import models
from segquant.base.classes import CAMVID
from segquant.base.config import Calibration, Finetune, Override, Packed, Qat, Recipe
from segquant.base.errors import ConfigError, DataError, ModelError
from segquant.data.calibration import calibration_batch
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.deploy import build_packed as module
from segquant.deploy.build_packed import build_packed
from segquant.deploy.decode import Nodes
from segquant.deploy.finetune import run_name
from segquant.deploy.graph import to_onnx
from segquant.deploy.packed import float_twin
from segquant.deploy.packed_int8 import _scale, pack_int8
from segquant.engines.load import load, load_graph
from segquant.engines.openvino import core
from segquant.methods import Job, kind
from segquant.quant.artifacts import describe_artifact, load_artifact, save_missing, seal
from segquant.quant.build import build
from segquant.training.losses import distillation
from segquant.training.material import Material

SOURCE = Recipe(
    "int2",
    algorithm="gptq",
    group_size=8,
    overrides={"*.fc1": Override("int3"), "*.fc2": Override("int4"), "decode_head.classifier": Override("int8")},
)
STATIC = Packed(source="codes", engine="onnxruntime", activations="int8", calibration=Calibration(4))
SCENES = list(rows(open_source("scenes", "train", 4)))
FLOAT = Packed(source="codes", engine="openvino")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with `codes`, the artifact of SOURCE, `int8.onnx`, the graph that PT2E made of it, and `static`; `float`
    has the codes and computes in float32."""
    folder = tmp_path_factory.mktemp("packed")
    models.save(float_model(), folder / "model")
    build(folder / "model", SOURCE, folder / "codes", torch.device("cpu"), images())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "to_onnx", lambda *a: kept(folder, to_onnx(*a)))
        times = build_packed(folder / "codes", SOURCE, STATIC, folder / "static", scenes())
    assert times["seconds"] > 0 and times["calibration_images"] == 4
    times = build_packed(folder / "codes", SOURCE, FLOAT, folder / "float")
    assert times["calibration_images"] == 0
    return folder


def kept(folder, graph):
    onnx.save(graph, folder / "int8.onnx")
    return graph


@pytest.fixture
def made_before(work, monkeypatch):
    """PT2E's export takes longest, and gives the same each time."""
    monkeypatch.setattr(module, "calibrated", lambda *_: None)
    monkeypatch.setattr(module, "exported", lambda *_: None)
    monkeypatch.setattr(module, "to_onnx", lambda *_: onnx.load(work / "int8.onnx"))


def int8_weights(graph):
    return [numpy_helper.to_array(t) for t in graph.initializer if t.data_type == TensorProto.INT8 and len(t.dims) > 1]


def decoded_weights(graph):
    """The same graph up to the int8 weights that it decodes, which are its outputs."""
    casts = [n for n in graph.node if n.op_type == "Cast" and n.attribute[0].i == TensorProto.INT8]
    return up_to(graph, [node.output[0] for node in casts], TensorProto.INT8)


def up_to(graph, names, kind):
    """The part of a graph that computes these values."""
    needed, nodes = set(names), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            nodes.insert(0, node)
            needed |= set(node.input)
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in names]
    constants = [tensor for tensor in graph.initializer if tensor.name in needed]
    part = helper.make_graph(nodes, "weights", [], outputs, constants)
    return helper.make_model(part, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def test_the_int8_weights_are_the_quantizers_one_by_one_on_both_engines(work):
    graph = onnx.load(work / "static/model.onnx").graph
    part = decoded_weights(graph)
    session = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"])
    compiled = core().compile_model(core().read_model(part), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    decoded = [session.run(None, {}), [output for output in compiled([]).values()]]
    before = int8_weights(onnx.load(work / "int8.onnx").graph)
    kept_int8 = int8_weights(graph)  # depthwise convolutions, the classifier, and the products of the head
    assert len(decoded[0]) + len(kept_int8) == len(before) and len(decoded[0]) == 14
    for weights in decoded:
        left = [values.tobytes() for values in [*weights, *kept_int8]]
        assert sorted(left) == sorted(values.tobytes() for values in before)


def test_the_first_convolution_has_its_codes_in_float(work):
    graph = onnx.load(work / "static/model.onnx").graph
    (first,) = (node for node in graph.node if node.op_type == "Conv" and "pixel_values" in node.input)
    part = up_to(graph, first.input[1:2], TensorProto.FLOAT)
    (decoded,) = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"]).run(None, {})
    twin = float_twin(load_artifact(work / "codes").model)
    assert np.array_equal(decoded, twin.segformer.stages[0].patch_embeddings.proj.weight.numpy())
    assert list(decoded.shape) not in [list(tensor.dims) for tensor in graph.initializer]


def test_the_graph_computes_what_the_int8_graph_computes_bit_for_bit(work):
    for shape in ((1, 3, 64, 96), (2, 3, 128, 64)):
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
        logits = [load_graph(path).logits(noise) for path in (work / "int8.onnx", work / "static/model.onnx")]
        assert torch.equal(*logits) and logits[0].std() > 0


def test_the_file_holds_codes_at_their_true_width(work):
    graph = onnx.load(work / "static/model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    info = describe_artifact(work / "codes")
    codes = sum(
        tensor.dims[0]
        for tensor in graph.graph.initializer
        if tensor.data_type == TensorProto.UINT8 and len(tensor.dims) == 1
    )
    head = ("decode_head.linear_fuse", "decode_head.linear_projections.0.proj", "decode_head.linear_projections.1.proj")
    layers = [m for name, m in info["modules"].items() if m["bits"] < 8 and name not in head]
    exact = sum(layer["parameters"] * layer["bits"] / 8 for layer in layers)
    groups = sum(layer["parameters"] / layer["group_size"] for layer in layers)
    assert exact < codes <= exact + groups * 12 / 8 + 2 * len(layers)  # ranges; a byte begun for each field of a layer


def test_the_scales_of_coded_weights_are_computed_from_them(work):
    """And are PT2E's to the last bit; a scale for each row took more than the ranges of its codes."""
    graph, before = (onnx.load(work / name).graph for name in ("static/model.onnx", "int8.onnx"))
    produced = {output for node in graph.node for output in node.output}
    dequantized = [n.input for n in graph.node if n.op_type == "DequantizeLinear"]
    scales = [scale for codes, scale, *_ in dequantized if {codes, scale} <= produced]
    assert len(scales) == 14  # of all weights below 8 bits but the first convolution's and the head's
    part = up_to(graph, scales, TensorProto.FLOAT)
    computed = onnxruntime.InferenceSession(part, providers=["CPUExecutionProvider"]).run(None, {})
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.initializer}
    known = {
        arrays[n.input[1]].tobytes() for n in before.node if n.op_type == "DequantizeLinear" and n.input[1] in arrays
    }
    assert {values.tobytes() for values in computed} <= known


def test_a_scale_that_is_no_rows_largest_value_is_stored():
    nodes, matrix = Nodes(), np.float32([[0, 0], [1, -2]])
    decoded, expected = nodes.constant(matrix), np.float32([2**-12, 2 / 127.5])
    assert _scale(nodes, decoded, matrix, expected).startswith("segquant/decoded")
    assert _scale(nodes, decoded, matrix, 2 * expected).startswith("segquant/constant")


def test_the_artifact_says_what_it_is_and_loads_as_one_of_the_engine(work):
    info, source = describe_artifact(work / "static"), describe_artifact(work / "codes")
    assert info["recipe"] == {
        "from": "codes",
        "engine": "onnxruntime",
        "activations": "int8",
        "compute": "float32",
        "calibration": {"images": 4},
        "train": None,
    }
    assert info["algorithm"] == "gptq+pt2e"
    assert all(info[key] == source[key] for key in ("parameters", "float32_bytes", "quantized_fraction"))
    artifact = load(work / "static")
    assert artifact.model.engine == "onnxruntime"
    assert artifact.size_bytes == (work / "static/model.onnx").stat().st_size
    assert sorted(path.name for path in (work / "static").iterdir()) == [
        "config.json",
        "model.onnx",
        "preprocessor_config.json",
        "quantization.json",
    ]


def test_the_same_codes_and_images_give_the_same_bytes(work, made_before, tmp_path):
    build_packed(work / "codes", SOURCE, STATIC, tmp_path / "again", scenes())
    for path in (work / "static").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_float_activations_give_the_artifacts_logits_on_the_recipes_engine(work):
    artifact = load(work / "float")
    assert (artifact.model.engine, artifact.info["algorithm"]) == ("openvino", "gptq")
    expected = load_artifact(work / "codes").model(images()).logits
    torch.testing.assert_close(artifact.model(images()).logits, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("reason", [{"unavailable": "no CUDA here"}, {"failed": "out of memory"}])
def test_without_its_source_it_is_not_there_either(reason, tmp_path):
    save_missing(SOURCE, reason, tmp_path / "codes")
    given = {key: f"codes {key}: {words}" for key, words in reason.items()}
    assert build_packed(tmp_path / "codes", SOURCE, STATIC, tmp_path / "out", images()) == given
    info = describe_artifact(tmp_path / "out")
    assert {key: info[key] for key in reason} == given and not (tmp_path / "out/model.onnx").exists()


def test_nothing_is_trained_without_its_source(work, tmp_path):
    save_missing(SOURCE, {"unavailable": "no CUDA here"}, tmp_path / "codes")
    recipe = replace(STATIC, train=Finetune(epochs=1, crop=64))
    material = Material(SCENES, CAMVID, "four scenes", "fixed-96x96-v1")
    inputs = (work / "model", recipe, tmp_path / "out", torch.device("cpu"), scenes(), None, {"codes": SOURCE})
    times = kind(recipe).build(Job(*inputs, material=material, checkpoint=tmp_path / "training.pt"))
    assert times == {"unavailable": "codes unavailable: no CUDA here"}
    assert not (tmp_path / "training.pt").exists()


def test_an_artifact_of_another_recipe_is_refused(work, tmp_path):
    with pytest.raises(ModelError, match="codes is not of the recipe of codes in params.yaml: quantize it again"):
        build_packed(work / "codes", replace(SOURCE, group_size=16), STATIC, tmp_path / "out", images())
    assert not list(tmp_path.iterdir())


def test_the_upkeep_of_its_sources_training_changes_nothing(work, tmp_path, monkeypatch):
    """quant.build.take takes an artifact of such a recipe too."""
    monkeypatch.setattr(module, "packed_graph", lambda *_: onnx.load(work / "float/model.onnx"))
    source = replace(SOURCE, train=Qat(steps=1, workers=1))
    shutil.copytree(work / "codes", tmp_path / "codes", ignore=shutil.ignore_patterns("quantization.json"))
    info = describe_artifact(work / "codes")
    seal(tmp_path / "codes", source, {key: info[key] for key in info.keys() - {"format", "recipe", "files"}})
    upkeep = {"workers": 0, "validate_every": 7, "checkpoint_every": 7, "validation_images": 7}
    same = replace(source, train=Qat(steps=1, **upkeep))
    assert "seconds" in build_packed(tmp_path / "codes", same, FLOAT, tmp_path / "out")
    for other in (SOURCE, replace(source, train=Qat(steps=2)), replace(source, ranges="float16")):
        with pytest.raises(ModelError, match="codes is not of the recipe of codes in params.yaml: quantize it again"):
            build_packed(tmp_path / "codes", other, FLOAT, tmp_path / "other")


def test_int8_activations_need_images(work, tmp_path):
    with pytest.raises(DataError, match="calibrates on images of the train split: there are none"):
        build_packed(work / "codes", SOURCE, STATIC, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_computes_something_else_is_not_written(work, made_before, tmp_path, monkeypatch):
    def broken(graph, model, twin):
        pack_int8(graph, model, twin)
        scale = next(t for t in graph.initializer if t.data_type == TensorProto.FLOAT16 and len(t.dims) == 3)
        scale.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scale), scale.name))

    monkeypatch.setattr(module, "pack_int8", broken)
    with pytest.raises(ModelError, match="the packed ONNX model on onnxruntime does not match PyTorch"):
        build_packed(work / "codes", SOURCE, STATIC, tmp_path / "out", images())
    assert not list(tmp_path.iterdir())


def test_a_weight_that_the_quantizer_rounded_otherwise_is_refused(work):
    model = load_artifact(work / "codes").model
    graph = onnx.load(work / "int8.onnx").graph
    weights = [t for t in graph.initializer if t.data_type == TensorProto.INT8 and list(t.dims) == [128, 32]]
    values = numpy_helper.to_array(weights[0]).copy()
    values[0, 0] += 1 if values[0, 0] < 127 else -1
    weights[0].CopyFrom(numpy_helper.from_array(values, weights[0].name))
    with pytest.raises(ModelError, match="changed the weights of 1 quantized layers, such as segformer.stages"):
        pack_int8(graph, model, float_twin(model))


def scenes():
    return calibration_batch(SCENES, "fixed-96x96-v1")


@pytest.fixture(scope="module")
def trained(work):
    """The artifact `trained`: `static` after some training, from the same codes."""
    recipe = replace(STATIC, train=Finetune(epochs=48, batch_size=4, crop=96, lr=3e-4, warmup=1, workers=0))
    material = Material(SCENES, CAMVID, "four scenes", "fixed-96x96-v1")
    inputs = (work / "model", recipe, work / "trained", torch.device("cpu"), scenes(), None, {"codes": SOURCE})
    kind(recipe).build(Job(*inputs, material=material, checkpoint=work / "training.pt"))
    return work / "trained"


def test_training_moves_no_code(trained, work):
    before, after = (onnx.load(folder / "model.onnx") for folder in (work / "static", trained))
    weights = []
    for model in (before, after):
        session = onnxruntime.InferenceSession(decoded_weights(model.graph), providers=["CPUExecutionProvider"])
        weights.append(sorted(values.tobytes() for values in session.run(None, {})))
    assert weights[0] == weights[1]
    head = [max(int8_weights(model.graph), key=lambda values: values.shape[0]).tobytes() for model in (before, after)]
    assert head[0] != head[1]  # what has no codes moves
    wide = [
        sum(len(t.raw_data) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT)
        for model in (before, after)
    ]
    assert wide[1] <= wide[0]  # biases and normalizations stay float16


def test_training_brings_it_nearer_to_float32(trained, work):
    teacher = models.load(work / "model")
    with torch.inference_mode():
        logits = [load(folder).model(scenes()).logits for folder in (work / "static", trained)]
        distances = [float(distillation(student, teacher(scenes()).logits)) for student in logits]
    assert distances[1] < 0.8 * distances[0]


def test_a_training_is_named_by_the_codes_too(trained, work, tmp_path):
    info = describe_artifact(trained)
    assert info["algorithm"] == "gptq+pt2e" and "48 epochs of training towards float32" in info["run"]
    recipe = replace(STATIC, train=Finetune(epochs=4))
    build(work / "model", replace(SOURCE, group_size=4), tmp_path / "codes", torch.device("cpu"), images())
    names = {run_name(recipe, work / "model", codes, 1, "p") for codes in (work / "codes", tmp_path / "codes")}
    assert len(names) == 2 and run_name(recipe, work / "model", work / "codes", 1, "p") in names


def test_float_activations_train_nothing():
    with pytest.raises(ConfigError, match="there is no train: activations stay float"):
        replace(FLOAT, train=Finetune(epochs=1))


def test_it_is_described_and_needs_its_engine(monkeypatch):
    from segquant.engines import extras

    words = kind(STATIC).describe(STATIC)
    assert words == (
        "the codes of codes as a graph on ONNX Runtime that computes in int8 (PyTorch 2 export, ranges from 4 images)"
    )
    assert kind(FLOAT).describe(FLOAT) == "the codes of codes as a graph on OpenVINO, computed in float32"
    assert kind(STATIC).refused("fixed-65x64-v1", None).startswith("graphs take heights and widths in multiples of 32")
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert kind(STATIC).unavailable(STATIC, torch.device("cpu")).endswith("pip install 'segquant[onnx]'")
