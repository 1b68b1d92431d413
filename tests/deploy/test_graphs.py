"""Compare graphs with PyTorch: export, quantize, run and time them on their engines."""

import json
import logging
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from graphs import RECIPES, float_model, images
from onnx import TensorProto, helper
from torch import nn

from segquant import models
from segquant.base.config import Calibration, Eval, Graph, Recipe, Speed
from segquant.base.errors import ConfigError, DataError, ModelError, UnavailableError
from segquant.data.preprocessing import Preprocessing, read_preprocessing
from segquant.deploy import openvino_int8
from segquant.deploy.build import build_graph
from segquant.deploy.describe import describe
from segquant.deploy.graph import Pixels
from segquant.deploy.onnx_export import export_onnx, write_exports
from segquant.deploy.openvino_int8 import quantize_nncf
from segquant.deploy.qdq import quantize_qdq
from segquant.engines import extras
from segquant.engines import load as engines
from segquant.engines.extras import refused_protocol, refused_size, unavailable
from segquant.engines.load import load, load_graph
from segquant.engines.openvino import by_position, core
from segquant.engines.runtime import Runtime
from segquant.evaluation.score import try_score
from segquant.evaluation.speed import measure
from segquant.quant.artifacts import describe_artifact, seal
from segquant.quant.build import build

MEAN, STD = [0.5, 0.25, 0.375], [0.5, 0.125, 0.75]  # which no other model has


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    models.save(float_model(), folder / "baseline")
    (folder / "baseline" / "preprocessor_config.json").write_text(json.dumps({"image_mean": MEAN, "image_std": STD}))
    export_onnx(folder / "baseline", folder / "onnx")
    return folder


@pytest.fixture(scope="module")
def artifact(work):
    """A function that gives the folder of a recipe's artifact, which its first call builds."""

    def folder(name):
        if not (work / name).exists():
            build_graph(work / "baseline", RECIPES[name], work / name, work / "onnx", images())
        return work / name

    return folder


INT8 = ["pt2e", "qdq"]


def nodes(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@torch.inference_mode()
def pytorch_logits(inputs):
    return float_model()(inputs).logits


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 96, 160), (5, 3, 32, 32), (1, 3, 256, 128)])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_float32_graph_gives_pytorchs_logits_at_any_size(work, engine, shape):
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    runtime = load_graph(work / "onnx" / "float32.onnx", engine)
    torch.testing.assert_close(runtime.logits(inputs), pytorch_logits(inputs), atol=1e-4, rtol=0)
    assert (runtime.engine, runtime.threads, runtime.config.num_labels) == (engine, torch.get_num_threads(), 11)


@torch.inference_mode()
def test_of_the_smallest_image_each_stage_has_one_key_and_the_last_one_pixel():
    """As in SegFormers of all sizes: engines have gone wrong there, and the tests of sizes need it."""
    model, keys = float_model(), []
    for stage in model.segformer.stages:
        stage.blocks[0].attention.k_proj.register_forward_hook(lambda *hook: keys.append(hook[2].shape[1]))
    last = model(torch.zeros(1, 3, 32, 32), output_hidden_states=True).hidden_states[-1]
    assert keys == [1, 1] and last.shape[2:] == (1, 1)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_smallest_image_first_changes_no_larger_one(work, engine):
    """OpenVINO gave other logits for all larger images: its first one had a single key in attention."""
    graph = load_graph(work / "onnx" / "float32.onnx", engine)
    for side in (32, 256, 32, 128):
        inputs = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(side))
        torch.testing.assert_close(graph.logits(inputs), pytorch_logits(inputs), rtol=0, atol=1e-4)


def test_an_export_is_checked_stripped_and_described(work):
    summary = json.loads((work / "onnx" / "export.json").read_text())
    assert summary["opset"] == 20 and summary["float32"]["difference"] < 1e-4
    for name in ("float32", "float16"):
        path = work / "onnx" / f"{name}.onnx"
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert summary[name]["bytes"] == path.stat().st_size and summary[name]["nodes"] == len(model.graph.node)
        metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
        assert metadata["labels"] == [f"LABEL_{i}" for i in range(11)]
        assert (metadata["preprocessing"]["mean"], metadata["preprocessing"]["std"]) == (MEAN, STD)
        assert load_graph(path).preprocessing == Preprocessing(MEAN, STD)
        parts = [*model.graph.node, *model.graph.value_info]
        assert not any(part.metadata_props or part.doc_string for part in parts) and model.doc_string == ""
        assert [str(d.dim_value or d.dim_param) for d in model.graph.input[0].type.tensor_type.shape.dim][1] == "3"
        assert nodes(path)["QuantizeLinear"] == 0
    assert summary["float16"]["bytes"] < 0.6 * summary["float32"]["bytes"]


def test_class_maps_of_the_graph_are_those_of_interpolation_and_argmax(tmp_path):
    model = float_model()
    models.save(model, tmp_path / "model")
    summary = export_onnx(tmp_path / "model", tmp_path / "onnx", classes=True)
    assert summary["output"] == "classes" and summary["float32"]["agreement"] == 1.0
    ort = pytest.importorskip("onnxruntime")
    inputs = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(4))
    session = ort.InferenceSession(tmp_path / "onnx" / "float32.onnx", providers=["CPUExecutionProvider"])
    (class_map,) = session.run(None, {"pixel_values": inputs.numpy()})
    with torch.inference_mode():
        expected = F.interpolate(model(inputs).logits, (96, 64), mode="bilinear", align_corners=False).argmax(1)
    assert class_map.dtype == np.uint8 and (class_map == expected.numpy()).all()
    assert len(np.unique(class_map)) > 5
    with pytest.raises(ModelError, match="float32.onnx gives class maps: export it without --classes"):
        load_graph(tmp_path / "onnx" / "float32.onnx")


def quantized_layers(stages=2):
    """The Linear and Conv2d layers of the model's graph, but for the first convolution, which stays float."""
    first, *others = (m for m in Pixels(float_model(stages)).modules() if type(m) in (nn.Linear, nn.Conv2d))
    assert isinstance(first, nn.Conv2d)
    return others


def quantized_tensors(name, stages):
    """How many tensors a graph quantizes, for a model of one block a stage."""
    blocks = 5 * stages  # the inputs of query, attention's output, fc1, depthwise convolution, fc2
    reductions = 2 * (stages - 1)  # the input of a reduction, and the input that key and value share
    outputs = stages  # of the stages: inputs of the next stage and of the head
    classifier = 1  # its input
    convolutions = 4 * stages - 1  # their outputs, without the first convolution's
    fused = name == "pt2e"  # the sum that X86InductorQuantizer fuses with the head's first convolution
    return blocks + reductions + outputs + classifier + convolutions + fused


def check_every_layer_is_int8(folder, name, stages=2):
    path = folder / "model.onnx"
    count, quantized = nodes(path), quantized_layers(stages)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert sorted(entry.key for entry in model.metadata_props) == ["labels", "preprocessing"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node) and model.doc_string == ""
    graph = model.graph
    int8 = [tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1]
    assert len(int8) == len(quantized)
    assert count["QuantizeLinear"] == quantized_tensors(name, stages)
    assert count["DequantizeLinear"] >= count["QuantizeLinear"] + len(int8)
    info = json.loads((folder / "quantization.json").read_text())
    parameters = Pixels(float_model(stages)).parameters()
    sizes = {values.detach().numpy().tobytes(): values.numel() for values in parameters}  # equal ones are held once
    share = sum(layer.weight.numel() for layer in quantized) / sum(sizes.values())
    assert info["quantized_fraction"] == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("name", INT8)
def test_an_int8_graph_quantizes_every_layer(artifact, name):
    check_every_layer_is_int8(artifact(name), name)


@pytest.mark.slow
def test_an_int8_graph_of_four_stages_quantizes_every_layer(tmp_path):
    models.save(float_model(4), tmp_path / "baseline")
    build_graph(tmp_path / "baseline", RECIPES["pt2e"], tmp_path / "pt2e", tmp_path, images())
    check_every_layer_is_int8(tmp_path / "pt2e", "pt2e", 4)


@pytest.mark.parametrize("name", RECIPES)
def test_every_engine_gives_nearly_pytorchs_classes(artifact, name):
    if reason := unavailable(RECIPES[name]):
        pytest.skip(reason)
    inputs = images(2)
    loaded = load(artifact(name))
    logits, expected = loaded.model(inputs).logits, pytorch_logits(inputs)
    assert (logits.argmax(1) == expected.argmax(1)).double().mean() > 0.9
    error = (logits - expected).square().mean() / expected.square().mean()
    assert error < (1e-3 if RECIPES[name].weights != "int8" else 1e-2)
    paths = [p for p in artifact(name).iterdir() if p.name.startswith("model.")]
    assert loaded.size_bytes == sum(p.stat().st_size for p in paths)


def test_a_range_for_each_position_is_refused(work, artifact, tmp_path, monkeypatch):
    """By NNCF's default preset, before a depthwise convolution. Artifacts of earlier versions have such ranges."""
    graph, default = work / "onnx" / "float32.onnx", replace(RECIPES["nncf"], ignored_types=())
    with pytest.raises(
        ModelError, match="^NNCF gives each position of an image a range of its own, .* GroupConvolution"
    ):
        quantize_nncf(graph, tmp_path, images(), default)
    assert not list(tmp_path.iterdir()) and load(artifact("nncf")).model(images(1).mT).logits.shape == (1, 11, 12, 8)
    monkeypatch.setattr(openvino_int8, "by_position", lambda graph: False)
    quantize_nncf(graph, tmp_path, images(), default)
    with pytest.raises(
        ModelError, match="model.xml has ranges for each position of an image, which OpenVINO computes wr"
    ):
        load_graph(tmp_path / "model.xml", "openvino")


@pytest.mark.parametrize("ranges", [(1, 1, 64, 1), (64, 1), (1, 1, 1, 96)])
def test_ranges_along_an_open_axis_are_refused(ranges, tmp_path):
    def loaded(axes, ranges):
        pixels = opset.parameter(axes, np.float32, "pixel_values")
        least, most = np.zeros(ranges, np.float32), np.ones(ranges, np.float32)
        quantized = opset.fake_quantize(pixels, least, most, least, most, 256)
        openvino.save_model(openvino.Model([quantized], [pixels]), tmp_path / "model.xml")
        return load_graph(tmp_path / "model.xml", "openvino")

    openvino = pytest.importorskip("openvino")
    opset = openvino.opset13
    with pytest.raises(ModelError, match="model.xml has ranges for each position of an image, which OpenVINO comp"):
        loaded((-1, 3, -1, -1), ranges)
    assert loaded((-1, 3, -1, -1), (1, 3, 1, 1)).size is loaded((-1, 3, -1, -1), ()).size is None
    assert not by_position(core().read_model(tmp_path / "model.xml"))


def test_logits_that_do_not_fit_the_images_are_refused():
    """OpenVINO has given those of the images before."""
    graph = Runtime(lambda pixels: np.zeros((1, 2, *kept), np.float32), "openvino", "1", 1)
    for kept, size in (((8, 12), (64, 96)), ((4, 4), (32, 32))):
        assert graph.logits(torch.zeros(1, 3, *size)).shape[2:] == kept
    for size in ((64, 96), (64, 32), (32, 64)):
        with pytest.raises(
            ModelError, match="cannot run the graph on pixels .*: it gives logits 1x2x4x4, which fit images of an"
        ):
            graph.logits(torch.zeros(1, 3, *size))


def test_the_same_images_give_the_same_bytes(work, artifact, tmp_path):
    """tests/deploy/test_finetune.py and tests/test_pipeline.py show the same for pt2e."""
    build_graph(work / "baseline", RECIPES["qdq"], tmp_path / "again", work / "onnx", images())
    assert (tmp_path / "again" / "model.onnx").read_bytes() == (artifact("qdq") / "model.onnx").read_bytes()


def test_the_search_leaves_the_fewest_of_the_most_sensitive_nodes_in_float(work, tmp_path):
    path, pictures = work / "onnx" / "float32.onnx", images(8)
    reference = load_graph(path).logits(pictures)

    def fidelity(model):
        """Stands for mIoU, and reacts to every node."""
        error = (model(pictures).logits - reference).square().mean() / reference.square().mean()
        return float(-1000 * error)

    assert quantize_qdq(path, tmp_path / "all.onnx", pictures) == {"float_nodes": []}
    full_drop = -fidelity(load_graph(tmp_path / "all.onnx"))
    strict = quantize_qdq(path, tmp_path / "strict.onnx", pictures, max_drop=full_drop / 2, score=fidelity)
    ranked = [row["node"] for row in strict["sensitivity"]]
    float_nodes = strict["float_nodes"]
    assert float_nodes == ranked[: len(float_nodes)]
    assert 0 < len(float_nodes) < len(ranked) == len(quantized_layers())
    snr = [row["snr_db"] for row in strict["sensitivity"]]
    assert snr == sorted(snr)
    assert strict["drop"] <= full_drop / 2
    assert strict["drop"] == pytest.approx(-fidelity(load_graph(tmp_path / "strict.onnx")))
    lenient = quantize_qdq(path, tmp_path / "lenient.onnx", pictures, max_drop=2 * full_drop, score=fidelity)
    assert lenient["float_nodes"] == [] and "sensitivity" not in lenient


def test_speed_is_relative_to_float32_on_the_same_engine_and_to_eager(work, artifact):
    build(work / "baseline", Recipe("float32"), work / "float32", torch.device("cpu"))
    options = Speed(input_size=(64, 96), batch_sizes=(1, 2), runs=3, warmup=1)
    speed = measure(artifact("qdq"), work / "float32", options, torch.device("cpu"), work / "onnx")
    assert [(lane["engine"], lane["batch_size"]) for lane in speed["lanes"]] == [("onnxruntime", 1), ("onnxruntime", 2)]
    for lane in speed["lanes"]:
        for name in ("relative_to_float32", "relative_to_eager"):
            assert 0 < lane[name]["min"] <= lane[name]["median"] <= lane[name]["max"]
    assert speed["engine_version"] == load(artifact("qdq")).model.version and speed["threads"] >= 1
    eager = measure(work / "float32", work / "float32", options, torch.device("cpu"), work / "onnx")
    assert eager["engine_version"] == torch.__version__ and "relative_to_eager" not in eager["lanes"][0]


def test_engines_with_their_own_threads_time_the_second_run_of_each_turn(work, artifact, monkeypatch):
    from segquant.evaluation import speed

    calls = []
    monkeypatch.setattr(speed, "forward", lambda model, inputs: calls.append((type(model).__name__, "untimed")))
    monkeypatch.setattr(speed, "_timed", lambda model, inputs: calls.append((type(model).__name__, "timed")) or 1.0)
    options = Speed(input_size=(64, 96), batch_sizes=(1,), runs=2, warmup=1)
    lane = speed._lane(nn.Identity(), {"float32": nn.ReLU()}, "openvino", images(1), options)
    assert calls[2:6] == [("Identity", "untimed"), ("Identity", "timed"), ("ReLU", "untimed"), ("ReLU", "timed")]
    assert lane["relative_to_float32"]["median"] == 1.0
    calls.clear()
    speed._lane(nn.Identity(), {"float32": nn.ReLU()}, "eager", images(1), options)
    assert ("Identity", "untimed") not in calls


def test_a_size_that_graphs_cannot_take_is_one_line(work):
    runtime = load_graph(work / "onnx" / "float32.onnx")
    with pytest.raises(ModelError, match="heights and widths in multiples of 32, not 1x3x64x100: choose such a size"):
        runtime.logits(torch.zeros(1, 3, 64, 100))


def foreign(path, input_shape, output_shape):
    """Write an ONNX file of another origin, which gives its input back."""
    node = helper.make_node("Identity", ["x"], ["y"])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)]
    graph = helper.make_graph([node], "foreign", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_that_is_not_a_segformers_graph_is_one_line(engine, tmp_path):
    (tmp_path / "junk.onnx").write_bytes(b"no graph")
    flat = foreign(tmp_path / "flat.onnx", ["B", 10], ["B", 10])
    grey = foreign(tmp_path / "grey.onnx", ["B", 1, 8, 8], ["B", 1, 8, 8])
    cases = {
        "nothing.onnx .*: give an ONNX file": tmp_path / "nothing.onnx",
        "is a folder: give an ONNX file": tmp_path,
        f"{engine} cannot load .*junk.onnx": tmp_path / "junk.onnx",
        "is not a SegFormer's graph: it must take pixels": flat,
        "must take pixels .B, 3, H, W., .*and give logits": grey,
    }
    for message, path in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            load_graph(path, engine)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "stored",
    [
        "{oops",
        "[1]",
        '{"mean": [0.5, 0.5, 0.5]}',
        '{"mean": [0.5], "std": [0.5]}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "channels": "BRG"}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "channels": ["BGR"]}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "scale": 0}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.0, 0.5]}',
        '{"mean": [0.5, 0.5, NaN], "std": [0.5, 0.5, 0.5]}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "gamma": 2.2}',
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resample": "cubic"}',
    ],
)
def test_a_graph_with_unreadable_preprocessing_metadata_is_refused(engine, stored, tmp_path):
    path = foreign(tmp_path / "other.onnx", ["B", 3, "H", "W"], ["B", 3, "H", "W"])
    assert load_graph(path, engine).preprocessing is None
    model = onnx.load(path)
    model.metadata_props.add(key="preprocessing", value=stored)
    onnx.save(model, path)
    with pytest.raises(ModelError, match="metadata `preprocessing` that cannot be followed: "):
        load_graph(path, engine)


def test_graphs_of_other_exporters_load(tmp_path):
    """Other exporters name the channels, or fix the batch."""
    path = foreign(tmp_path / "named.onnx", ["B", "num_channels", "H", "W"], ["B", "num_channels", "H", "W"])
    runtime = load_graph(path)
    assert (runtime.batch, runtime.config.num_labels) == (None, 3)
    fixed = load_graph(foreign(tmp_path / "fixed.onnx", [1, 3, 64, 96], [1, 3, 64, 96]))
    assert (fixed.batch, fixed.config.num_labels) == (1, 3)


def test_an_unknown_opset_is_one_line(work, tmp_path):
    with pytest.raises(ConfigError, match="opset 99 is unknown: onnx 1.* and PyTorch write 18 to"):
        export_onnx(work / "baseline", tmp_path / "out", opset=99)
    assert not (tmp_path / "out").exists()
    model = onnx.load(work / "onnx" / "float32.onnx")
    model.opset_import[0].version = 99
    onnx.save(model, tmp_path / "new.onnx")
    message = "onnxruntime cannot load .*new.onnx: .*Opset 99 is under develop.* is till opset"
    with pytest.raises(ModelError, match=message):
        load_graph(tmp_path / "new.onnx")


def test_without_the_extra_a_method_is_unavailable_and_says_what_to_install(work, tmp_path, monkeypatch):
    find_spec = extras.find_spec

    def hide(*missing):
        monkeypatch.setattr(extras, "find_spec", lambda name: None if name in missing else find_spec(name))

    hide("onnxruntime", "nncf")
    onnx_line = r"onnxruntime not installed: pip install 'segquant\[onnx\]'"
    with pytest.raises(UnavailableError, match=onnx_line):
        export_onnx(work / "baseline", tmp_path / "out")
    write_exports(work / "baseline", tmp_path / "exports")
    assert "onnxruntime not" in json.loads((tmp_path / "exports" / "export.json").read_text())["unavailable"]
    times = build_graph(work / "baseline", RECIPES["pt2e"], tmp_path / "a", tmp_path / "exports", images())
    assert times["unavailable"] == "onnxruntime not installed: pip install 'segquant[onnx]'"
    with pytest.raises(UnavailableError, match=onnx_line):
        load(tmp_path / "a")
    hide("nncf")
    assert unavailable(RECIPES["nncf"]) == "nncf not installed: pip install 'segquant[openvino]'"
    assert unavailable(RECIPES["openvino_float32"]) is None
    hide("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
    assert unavailable(RECIPES["nncf"]).endswith("not installed: pip install 'segquant[openvino]'")
    assert unavailable(RECIPES["qdq"]).endswith("not installed: pip install 'segquant[onnx]'")


def test_bfloat16_needs_a_processor_that_has_it(monkeypatch):
    monkeypatch.setattr(extras, "instructions", lambda: ["avx2"])
    assert "compute bfloat16 needs a processor that has it" in unavailable(RECIPES["openvino_bfloat16"])
    monkeypatch.setattr(extras, "instructions", lambda: ["avx2", "amx_bf16"])
    assert unavailable(RECIPES["openvino_bfloat16"]) is None


def test_an_artifact_in_bfloat16_runs_on_no_other_processor(work, artifact, tmp_path, monkeypatch):
    """Made on a processor that has it, elsewhere it was scored and timed all the same."""
    shutil.copytree(artifact("openvino_float32"), tmp_path / "a", ignore=shutil.ignore_patterns("quantization.json"))
    info = describe_artifact(artifact("openvino_float32"))
    counts = {key: info[key] for key in ("parameters", "float32_bytes", "quantized_fraction")}
    seal(tmp_path / "a", RECIPES["openvino_bfloat16"], counts)
    monkeypatch.setattr(extras, "instructions", lambda: ["avx2"])
    with pytest.raises(UnavailableError, match="^compute bfloat16 needs a processor that has it"):
        load(tmp_path / "a")
    options = Speed(input_size=(64, 64), batch_sizes=(1,), runs=2, warmup=1)
    speed = measure(tmp_path / "a", work / "float32", options, torch.device("cpu"), work / "onnx")
    scores = {"protocol": "fixed-64x64-v1", "reference": "", "label_map": None, "settings": Eval(), "partial": tmp_path}
    metrics, result = try_score(tmp_path / "a", [], [], **scores)
    assert list(speed) == list(metrics) == ["unavailable"] and result is None


def test_sizes_that_graphs_cannot_take_are_refused_beforehand():
    reason = "graphs take heights and widths in multiples of 32, not {}: choose such a size"
    for size in ("360x480", "384x500", "500x512"):
        assert refused_protocol(f"fixed-{size}-v1") == reason.format(f"protocol fixed-{size}-v1")
        assert refused_size(tuple(map(int, size.split("x")))) == reason.format(f"speed.input_size {size}")
    assert refused_protocol("fixed-384x512-v1") is refused_protocol("aligned-512-v1") is None
    assert refused_size((384, 512)) is None


def test_a_model_without_a_graph_stops_no_other_method(work, tmp_path, monkeypatch):
    from segquant.deploy import graph

    def fails(*_arguments, **_options):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(graph.torch.export, "export", fails)
    write_exports(work / "baseline", tmp_path / "exports")
    times = build_graph(work / "baseline", RECIPES["qdq"], tmp_path / "a", tmp_path / "exports", images())
    assert times == {"failed": "torch.export cannot export this model: two lines"}
    with pytest.raises(ModelError, match="torch.export cannot export this model: two lines"):
        build_graph(work / "baseline", RECIPES["pt2e"], tmp_path / "b", tmp_path / "exports", images())


def test_speed_at_a_size_that_the_graph_cannot_take_is_unavailable(work, artifact):
    options = Speed(input_size=(64, 100), batch_sizes=(1,), runs=2, warmup=1)
    speed = measure(artifact("qdq"), work / "float32", options, torch.device("cpu"), work / "onnx")
    assert list(speed) == ["unavailable"]
    assert "multiples of 32, not speed.input_size 64x100: choose such a size" in speed["unavailable"]


def test_calibration_without_images_is_one_line(work, tmp_path):
    with pytest.raises(DataError, match="algorithm qdq calibrates on images of the train split: there are none"):
        build_graph(work / "baseline", RECIPES["qdq"], tmp_path / "a", work / "onnx", torch.empty(0, 3, 64, 96))
    assert not (tmp_path / "a").exists()


def test_a_node_type_that_the_model_lacks_is_one_line(work, tmp_path):
    recipe = replace(RECIPES["nncf"], ignored_types=("Convolutoin",))
    with pytest.raises(
        ModelError, match="ignored_types: the model has no node of type 'Convolutoin': choose from Add, "
    ):
        build_graph(work / "baseline", recipe, tmp_path / "a", work / "onnx", images())


def test_quantizing_leaves_the_levels_of_nncfs_log_handlers_alone(work, tmp_path):
    import nncf

    recipe = replace(RECIPES["nncf"], ignored_types=("None",))
    nncf.common.logging.nncf_logger.addHandler(handler := logging.NullHandler())
    with pytest.raises(ModelError):
        quantize_nncf(work / "onnx" / "float32.onnx", tmp_path, images(), recipe)
    nncf.common.logging.nncf_logger.removeHandler(handler)
    assert handler.level == logging.NOTSET


def test_a_damaged_graph_is_one_line(artifact, tmp_path):
    import shutil

    shutil.copytree(artifact("onnx_float32"), tmp_path / "a")
    with open(tmp_path / "a" / "model.onnx", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(ModelError, match="model.onnx is missing or not as it was written: quantize again"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"engine": "onnxruntime", "weights": "int8"}, "weights int8 need an algorithm"),
        ({"engine": "onnxruntime", "weights": "float32", "algorithm": "qdq"}, "no other weights have one"),
        (
            {"engine": "openvino", "weights": "int8", "algorithm": "qdq"},
            "algorithm qdq on openvino takes engine onnxrunt",
        ),
        ({"engine": "openvino", "weights": "float16"}, "no weights float16"),
        ({"engine": "onnxruntime", "weights": "float32", "compute": "bfloat16"}, "openvino alone has others"),
        ({"engine": "onnxruntime", "weights": "int8", "algorithm": "pt2e", "max_drop": 0.1}, "qdq alone searches"),
        ({"engine": "onnxruntime", "weights": "float32", "calibration": Calibration(3)}, "nothing is quantized"),
        ({"engine": "onnxruntime", "weights": "float32", "ignored_types": ("Add",)}, "they are of algorithm nncf"),
    ],
)
def test_a_contradictory_recipe_is_one_line(options, message):
    with pytest.raises(ConfigError, match=message):
        Graph(**options)


def test_recipes_are_described_in_words():
    assert describe(RECIPES["openvino_bfloat16"]) == "the float32 graph on OpenVINO, computed in bfloat16"
    words = describe(RECIPES["nncf"])
    assert "NNCF, but for GroupConvolution, Add, ranges from 4 images" in words


def test_load_quantized_takes_artifacts_of_every_engine(artifact, work):
    import segquant

    inputs = images(1)
    assert segquant.load_quantized(artifact("qdq"))(inputs).logits.shape == (1, 11, 8, 12)
    assert engines.load_quantized is segquant.load_quantized
    with pytest.raises(ModelError, match="is a graph for onnxruntime: segquant.load_quantized runs it"):
        from segquant.quant.artifacts import load_artifact

        load_artifact(artifact("qdq"))
    assert read_preprocessing(artifact("qdq")) == Preprocessing(MEAN, STD)


def test_a_signal_after_openvino_is_handled(work, tmp_path):
    """Sessions end in any order, and NNCF has some of its own."""
    script = """
import signal, sys
from pathlib import Path
import torch
from graphs import RECIPES, images
from segquant.deploy.openvino_int8 import quantize_nncf
from segquant.engines.openvino import start

graph, folder = Path(sys.argv[1]), Path(sys.argv[2])
first, second = start(graph, "float32"), start(graph, "float32")
del first
del second
quantize_nncf(graph, folder, images(), RECIPES["nncf"])
signal.signal(signal.SIGALRM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGALRM)
"""
    (tmp_path / "int8").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, work / "onnx/float32.onnx", tmp_path / "int8"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "handled", done.stderr
