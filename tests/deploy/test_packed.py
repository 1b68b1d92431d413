"""Artifacts as ONNX graphs with codes at their true width, on every engine and on onnx's own reference."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from graphs import float_model
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torchao.quantization import IntxUnpackedToInt8Tensor

from segquant import cli, models
from segquant.base.config import Override, Ranges, Recipe
from segquant.base.errors import ModelError
from segquant.deploy import decode, onnx_export, packed
from segquant.deploy.decode import Nodes
from segquant.deploy.onnx_export import export_artifact, export_onnx
from segquant.deploy.packed import float_twin, pack_weights
from segquant.engines.load import load_graph
from segquant.quant.artifacts import describe_artifact, load_artifact
from segquant.quant.build import build
from segquant.quant.ranges import round_ranges

GPTQ = {"algorithm": "gptq", "group_size": 8}
RECIPES = {
    "int2": Recipe("int2", **GPTQ),
    "int3": Recipe("int3", **GPTQ),
    "int4": Recipe("int4", group_size=8),
    "int8": Recipe("int8"),
    "float8": Recipe("float8"),
    "linear layers": Recipe("int4", group_size=32, layers="linear"),
    "a part of the head": Recipe("int3", group_size=16, layers=("decode_head.linear_projections.*", "*.fc1")),
    "mixed": Recipe("int2", overrides={"decode_head.*": Override("int8"), "*.fc2": Override("float8")}),
}


def noise(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(3))


def values(nodes, name, shape):
    """What the nodes compute, by onnx's reference implementation and on both engines."""
    decoding, constants = nodes.written()
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    graph = helper.make_graph(decoding, "g", [], [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return [ReferenceEvaluator(model).run(None, {})[0], *(run(model) for run in (on_onnxruntime, on_openvino))]


def on_onnxruntime(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {})[0]


def on_openvino(model):
    from segquant.engines.openvino import core

    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return core().compile_model(core().read_model(model.SerializeToString()), "CPU", options)([])[0]


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(1, 7), st.integers(1, 5), st.integers(1, 7), st.data())
def test_codes_of_every_width_decode_on_every_engine(width, rows, groups, size, data):
    """OpenVINO's shifts rounded codes up, so that weights were another model's."""
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    half = 1 << (width - 1)
    codes = torch.randint(-half, half, (rows, groups * size), generator=generator, dtype=torch.int8)
    scale = torch.rand(rows, groups, generator=generator).half().float()
    zero = torch.randn(rows, groups, generator=generator).half().float() * data.draw(st.sampled_from([0, 1, 300]))
    bits = data.draw(st.none() | st.tuples(st.integers(1, 8), st.integers(1, 8)))
    if bits:
        scale, zero = round_ranges(scale.clamp_min(0.01), zero, width, Ranges(*bits))
    kind = getattr(torch, f"int{width}")
    tensor = IntxUnpackedToInt8Tensor(codes, scale, zero, kind, (1, size), torch.float32, None)
    nodes = Nodes()
    name = decode.weight(nodes, tensor, (groups, rows, size))
    expected = tensor.dequantize().numpy().reshape(groups, rows, size)
    assert all((result == expected).all() for result in values(nodes, name, expected.shape))
    packed_bytes = sum(c.dims[0] for c in nodes.written()[1] if c.data_type == TensorProto.UINT8 and len(c.dims) == 1)
    if width < 8 and not bits:
        assert packed_bytes <= -(-codes.numel() * width // 8) + 2  # a byte begun for each field


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with `model`, no two of whose parameters are equal, and its export."""
    folder, model = tmp_path_factory.mktemp("packed"), float_model()
    generator = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    models.save(model, folder / "model")
    export_onnx(folder / "model", folder / "onnx")
    return folder


@pytest.fixture(scope="module")
def artifact(work):
    """A function that gives the folder of a recipe's artifact, which its first call builds."""

    def built(name):
        if not (work / name).exists():
            build(work / "model", RECIPES[name], work / name, torch.device("cpu"), noise(4))
        return work / name

    return built


def twins_graph(work, twin):
    """The graph that an export of `twin` gives: the float model's, with the twin's weights in place of its own.

    The exporter keeps the names of all but the weights that it transposes.
    """
    own, new = (parameters(model) for model in (models.load(work / "model"), twin))
    transposed = {packed._key(own[name].T): new[name].T for name in own if own[name].ndim == 2}
    graph = onnx.load(work / "onnx/float32.onnx")
    for tensor in graph.graph.initializer:
        values = new.get(tensor.name, transposed.get(packed._key(numpy_helper.to_array(tensor))))
        if values is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    return graph


def parameters(model):
    return {name: tensor.numpy() for name, tensor in onnx_export.Pixels(model).state_dict().items()}


def fused_nodes(model, folder):
    """The nodes that ONNX Runtime makes of a graph, by their type."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "fused.onnx").graph.node)


@pytest.mark.parametrize("name", RECIPES)
def test_a_graph_with_codes_is_the_artifact_on_every_engine(name, artifact, work, tmp_path):
    model = load_artifact(artifact(name)).model
    twin = float_twin(model)
    graph = twins_graph(work, twin)
    fused = fused_nodes(graph, tmp_path)
    pack_weights(graph.graph, model, twin)
    assert fused_nodes(graph, tmp_path) == fused  # what runs is the float model's graph
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, tmp_path / "model.onnx")
    expected = model(noise()).logits
    for engine in ("onnxruntime", "openvino"):
        logits = load_graph(tmp_path / "model.onnx", engine).logits(noise())
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
    kinds = (TensorProto.FLOAT, TensorProto.FLOAT16)
    floats = [list(t.dims) for t in graph.graph.initializer if t.data_type in kinds and len(t.dims) in (2, 4)]
    if RECIPES[name].layers == "all":
        assert all(dims[1:] == [1] for dims in floats)  # the normalization of the head; scales have three sides


def test_an_export_is_checked_on_every_engine_and_says_what_it_is(artifact, tmp_path):
    folder = artifact("int3")
    summary = export_artifact(folder, tmp_path / "out")
    assert summary == json.loads((tmp_path / "out/export.json").read_text())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["export.json", "model.onnx"]
    for engine in ("onnxruntime", "openvino"):
        assert summary[engine]["difference"] < 2e-5 and summary[engine]["agreement"] == 1
    assert summary["bytes"] == (tmp_path / "out/model.onnx").stat().st_size
    metadata = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "out/model.onnx").metadata_props}
    assert metadata["recipe"] == describe_artifact(folder)["recipe"]
    assert metadata["labels"] and metadata["preprocessing"]["multiple_of"] == 32
    assert {node.domain for node in onnx.load(tmp_path / "out/model.onnx").graph.node} == {""}


def test_a_graph_that_is_another_model_on_one_engine_is_not_written(artifact, work, tmp_path, monkeypatch):
    start, twin = onnx_export.start, float_twin(load_artifact(artifact("int3")).model)

    def other(path, engine):
        runtime, *ends = start(path, engine)
        call = runtime.call
        if engine == "openvino":
            runtime.call = lambda pixels: call(pixels) + 2e-4
        return runtime, *ends

    monkeypatch.setattr(onnx_export, "start", other)
    monkeypatch.setattr(onnx_export, "exported", lambda pixels: pixels)  # the export takes longest
    monkeypatch.setattr(onnx_export, "to_onnx", lambda *_: twins_graph(work, twin))
    with pytest.raises(ModelError, match="the packed ONNX model on openvino does not match PyTorch: logits differ by"):
        export_artifact(artifact("int3"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("float32"), "has no quantized weight: export its float model by --model"),
        (Recipe("bfloat16"), "has no quantized weight: export its float model by --model"),
        (
            Recipe("int8", activations="int8"),
            "quantizes activations as they come, and a graph with codes computes in float32",
        ),
    ],
)
def test_what_no_graph_computes_is_one_line(recipe, message, work, tmp_path):
    build(work / "model", recipe, tmp_path / "artifact", torch.device("cpu"))
    with pytest.raises(ModelError, match=message):
        export_artifact(tmp_path / "artifact", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [lambda values: 2 * values, lambda values: np.concatenate([values, values])])
def test_a_layer_whose_weight_the_exporter_changed_is_refused(change, artifact, work):
    model = load_artifact(artifact("int4")).model
    twin = float_twin(model)
    graph = twins_graph(work, twin)
    changed = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) == [11, 32, 1, 1])
    changed.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(changed)), changed.name))
    with pytest.raises(ModelError, match="changed the weights of 1 quantized layers, such as decode_head.classifier"):
        pack_weights(graph.graph, model, twin)


def test_a_layer_that_the_graph_does_without_is_not_there(artifact, work):
    model = load_artifact(artifact("int4")).model
    twin = float_twin(model)
    graph = twins_graph(work, twin)
    unused = next(tensor for tensor in graph.graph.initializer if list(tensor.dims) == [11, 32, 1, 1])
    graph.graph.initializer.remove(unused)
    pack_weights(graph.graph, model, twin)


def test_a_graph_with_branches_is_refused(artifact, work):
    model = load_artifact(artifact("int4")).model
    graph = twins_graph(work, float_twin(model)).graph
    branch = helper.make_graph([], "branch", [], [])
    graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    with pytest.raises(ModelError, match="the model's graph has branches"):
        pack_weights(graph, model, float_twin(model))


def test_weights_that_are_zero_or_equal_or_symmetric_are_themselves(work, tmp_path):
    float32 = models.load(work / "model")
    block = float32.segformer.stages[0].blocks[0]
    block.mlp.fc1.weight.data.zero_()
    block.attention.k_proj.weight.data.copy_(block.attention.q_proj.weight)
    block.attention.v_proj.weight.data.copy_(block.attention.v_proj.weight + block.attention.v_proj.weight.T)
    models.save(float32, tmp_path / "model")
    build(tmp_path / "model", RECIPES["int4"], tmp_path / "int4", torch.device("cpu"))
    model = load_artifact(tmp_path / "int4").model
    graph = twins_graph(work, float_twin(model))
    pack_weights(graph.graph, model, float_twin(model))
    onnx.save(graph, tmp_path / "model.onnx")
    logits = load_graph(tmp_path / "model.onnx").logits(noise())
    torch.testing.assert_close(logits, model(noise()).logits, rtol=0, atol=2e-5)


def test_the_command_says_what_each_engine_gives(artifact, work, tmp_path, monkeypatch, capsys):
    twin = float_twin(load_artifact(artifact("int3")).model)
    monkeypatch.setattr(onnx_export, "exported", lambda pixels: pixels)
    monkeypatch.setattr(onnx_export, "to_onnx", lambda *_: twins_graph(work, twin))
    command = ["export", "onnx", "--artifact", str(artifact("int3")), "--output"]

    def main(command):
        arguments = cli.parser().parse_args(command)
        arguments.main(arguments)

    main([*command, str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" on ")[2] for line in lines] == ["onnxruntime", "openvino"]
    assert all("logits within" in line and "100.00% of pixels in the same class" in line for line in lines)
    main([*command, str(tmp_path / "json"), "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "json/export.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int2_qat", "int4_qat"])
def test_a_b0_is_as_small_as_its_artifact(name, tmp_path):
    folder = ROOT / "models/trained" / name
    summary = export_artifact(folder, tmp_path / "out")
    assert summary["bytes"] <= 1.03 * (folder / "model.safetensors").stat().st_size


@pytest.mark.slow
def test_class_maps_are_those_of_the_artifact(artifact, tmp_path):
    summary = export_artifact(artifact("int2"), tmp_path / "out", classes=True)
    assert summary["output"] == "classes" and summary["onnxruntime"] == summary["openvino"] == {"agreement": 1.0}
