"""Every path that has a device, on a GPU: a real one where there is one, else a pretended one (`pretended_gpu`)."""

import copy
import inspect
import json
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, ade20k_folder
from PIL import Image
from pretended_gpu import pretended_gpu
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from segquant import models, predictions
from segquant.base.classes import ADE20K
from segquant.base.config import (
    BY_POSITION,
    Calibration,
    Data,
    Distill,
    Eval,
    Finetune,
    Graph,
    Override,
    Phase,
    Qat,
    Recipe,
    Sensitivity,
    Speed,
    Train,
    load,
)
from segquant.data.images import decode_annotation
from segquant.data.preprocessing import IMAGENET
from segquant.data.rows import rows
from segquant.data.shards import open_shards, write_shards
from segquant.data.sources import open_source
from segquant.deploy import finetune, pt2e
from segquant.engines.load import load_quantized
from segquant.evaluation import loop, metric, predict, reference, score, sensitivity, speed, upsample
from segquant.quant import artifacts, build, calibrate, fake, gptq, head, recipes
from segquant.quant.codes import Grid, dequantize
from segquant.training import baseline, distill, qat
from segquant.training import loop as training
from segquant.training.material import Material

REAL = torch.cuda.is_available()
REFUSALS = "same device|different devices|can't convert cuda|should be the same|for generator but found"
PROTOCOL = "fixed-64x64-v1"
DATA = Data("data", train_split="train", validation_split="val")
SMALL = SegformerConfig(
    num_encoder_blocks=2,
    depths=[1, 1],
    hidden_sizes=[16, 16],
    num_attention_heads=[1, 2],
    sr_ratios=[2, 1],
    patch_sizes=[3, 1],
    strides=[8, 2],
    mlp_ratios=[2, 2],
    decoder_hidden_size=16,
    num_labels=150,
)
BITS = {"*patch*": Override("int8"), "*fc1": Override("int3"), "*fuse*": Override("int2")}
FITTED = ("*patch*", "*stages.0*fc?", "*dwconv*", "*fuse*", "*classifier")
GPTQ = Recipe("int4", 16, "gptq", layers=FITTED, overrides=BITS, calibration=Calibration(2))
RECIPES = {
    "float32": Recipe("float32"),
    "bfloat16": Recipe("bfloat16"),
    "float8": Recipe("float8"),
    "float8_dynamic": Recipe("float8", activations="float8"),
    "int8": Recipe("int8"),
    "int8_dynamic": Recipe("int8", activations="int8"),
    "int4_dynamic": Recipe("int4", 16, activations="int8"),
    "affine": Recipe("int4", 16),
    "hqq": Recipe("int3", 16, "hqq"),
    "gptq": GPTQ,
}
UPKEEP = {"warmup": 1, "checkpoint_every": 2, "validate_every": 2, "validation_images": 2}
QAT = Qat(steps=2, crop=64, batch_size=2, workers=0, **UPKEEP)

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A folder with a float model in `model` and pictures in `data`."""
    root = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    model = SegformerForSemanticSegmentation(SMALL).eval()
    model.decode_head.classifier.bias.data += torch.randn(150)
    models.save(model, root / "model")
    for split in ("training", "validation"):
        ade20k_folder(root / "data", split, 3)
    return root


@pytest.fixture
def folder(originals, tmp_path, monkeypatch):
    """The current folder: a copy of the originals."""
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def gpu(monkeypatch):
    if REAL:
        yield torch.device("cuda", 0)
    else:
        with pretended_gpu(monkeypatch) as device:
            yield device


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def params(device="cuda", **sections):
    return replace(load(ROOT / "params.yaml"), data=DATA, protocol=PROTOCOL, eval=Eval(device=device), **sections)


def pictures(split="val"):
    return open_source(DATA, split, 3)


def built(gpu, recipe, folder="artifact"):
    return build.build("model", recipe, folder, gpu, images() if recipe.calibration_images else None)


def same_classes(model, other):
    """The share of pixels to which two models, each on its device, give the same class."""
    first, second = (predict.forward(each, images()).argmax(1).cpu() for each in (model, other))
    return (first == second).double().mean()


# With x (2, 3), i (1,) and n () on the CPU, and X, I and N the same on the GPU: where a result lies, None if refused
PLACES = {
    "X + n": "cuda",
    "n * X": "cuda",
    "X + N": "cuda",
    "torch.where(X > 0, X, n)": "cuda",
    "X[i]": "cuda",
    "X[I]": "cuda",
    "X.new_zeros(2)": "cuda",
    "torch.zeros_like(X)": "cuda",
    "torch.zeros_like(X, device='cpu')": "cpu",
    "torch.zeros(2, device=I.device)": "cuda",
    "torch.as_tensor(x, device=I.device)": "cuda",
    "F.one_hot(I, 3)": "cuda",
    "X.to('cpu')": "cpu",
    "X.half().cpu()": "cpu",
    "x.to(X)": "cuda",
    "x.copy_(X)": "cpu",
    "copy.deepcopy(X)": "cuda",
    "nn.Parameter(X).detach()[0]": "cuda",
    "torch.tensor(X[0].tolist())": "cpu",
    "x": "cpu",
    "x + X": None,
    "x + N": None,
    "n.add_(N)": None,
    "torch.cat([X, x])": None,
    "torch.stack([N, n])": None,
    "X @ x.T": None,
    "x[I]": None,
    "X.index_select(0, i)": None,
    "X.gather(1, i[None])": None,
    "F.cross_entropy(X, x.argmax(1))": None,
    "F.linear(X, x)": None,
    "torch.equal(X, x)": None,
    "X.numpy()": None,
    "np.asarray(X)": None,
    "torch.multinomial(X.softmax(1), 1, generator=torch.Generator())": None,
}


@pytest.mark.parametrize("call", PLACES)
def test_where_tensors_may_lie(gpu, call):
    """The pretended GPU gives and refuses what a real one does, which this test asks where there is one."""
    x, i, n = torch.randn(2, 3), torch.tensor([1]), torch.tensor(2.0)
    names = {"x": x, "i": i, "n": n, "X": x.to(gpu), "I": i.to(gpu), "N": n.to(gpu)}
    modules = {"torch": torch, "nn": nn, "F": F, "np": np, "copy": copy}
    if PLACES[call]:
        assert eval(call, modules, names).device.type == PLACES[call] and x.device.type == "cpu"
    else:
        with pytest.raises((RuntimeError, TypeError), match=REFUSALS):
            eval(call, modules, names)


@pytest.mark.parametrize("name", RECIPES)
def test_an_artifact_is_made_and_loaded(folder, gpu, name, monkeypatch):
    if name == "float8_dynamic" and not REAL:  # torchao looks for the GPU
        monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda granularity: None)
        monkeypatch.setattr("torchao.quantization.quant_api.is_sm_at_least_89", lambda: True)
    assert "seconds" in built(gpu, RECIPES[name])
    model = load_quantized("artifact", gpu)
    assert {tensor.device for tensor in model.state_dict().values()} == {gpu}
    other = models.load("model") if name == "float8_dynamic" else load_quantized("artifact")
    assert same_classes(model, other) > 0.95


def test_a_layer_without_inputs_is_rounded(folder, gpu):
    model = models.load("model").to(gpu)
    model.idle = torch.nn.Linear(16, 8).to(gpu)
    codes, _ = calibrate.calibrate(model, {"idle": Grid(4, 16)}, images().to(gpu))["idle"]
    assert (dequantize(codes) - model.idle.weight).abs().max() < 0.05


def scored(device, protocol, label_map, dtype):
    """A model's score on a device, with its own class maps of float32 for a reference."""
    shards = open_shards("shards", "val")
    options = {"protocol": protocol, "partial": Path("partial"), "settings": Eval(2, device, 1, dtype)}
    build.build("model", Recipe("float32"), "float32", models.device(device))
    reference.write_reference("model", shards, "reference", **options)
    return score.score("float32", shards, ADE20K, reference="reference", label_map=label_map, **options)


@pytest.mark.parametrize(
    "options",
    [(PROTOCOL, "map.yaml", "float32"), ("aligned-512-v1", BY_POSITION, "bfloat16")],
    ids=["fixed", "resized"],
)
def test_a_score_is_that_of_a_cpu(folder, gpu, options):
    write_shards({"val": pictures()}, "shards")
    ids = "".join(f"  {i}: {(i + 1) % 150}\n" for i in range(150))
    Path("map.yaml").write_text(f"map:\n{ids}")
    (metrics, result), (expected, plain) = (scored(device, *options) for device in ("cuda", "cpu"))
    for key in ("mean_iou", "overall_accuracy", "agreement"):
        assert metrics[key] == pytest.approx(expected[key], abs=0.01), key
    assert metrics["agreement"] > 0.95
    for (name, actual), (other, picture) in zip(result.pictures.items(), plain.pictures.items(), strict=True):
        assert name == other and (actual == picture).mean() > 0.95


def test_a_batch_that_does_not_fit_is_halved(folder, gpu, monkeypatch):
    model, forward, seen = models.load("model").to(gpu), predict.forward, []

    def small(model, inputs, *rest):
        seen.append((len(inputs), inputs.device))
        if len(inputs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, inputs, *rest)

    monkeypatch.setattr(predict, "forward", small)
    predicted = predict.predict(model, rows(pictures()), PROTOCOL, Eval(batch_size=3))
    assert [prediction.classes.device for prediction in predicted] == [gpu] * 3
    assert seen == [(3, gpu), (1, gpu), (1, gpu), (1, gpu)]


def test_the_limit_of_memory_is_a_share_of_the_gpus(folder, gpu, monkeypatch):
    limits = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: limits.append(limit))
    predict.prepared(models.load("model").to(gpu), Eval(max_gpu_memory_gb=12))
    total = torch.cuda.get_device_properties(gpu).total_memory
    assert limits == [(min(1.0, 11e9 / total), gpu)]


def test_pictures_are_predicted(folder, gpu):
    built(gpu, Recipe("int8"))
    overlays = []
    for device in ("cuda", "cpu"):
        (result, *_) = predictions.predict_pictures(
            params(device), ["data/images/validation"], "artifact", Path(device)
        )
        assert sum(result["classes"].values()) == pytest.approx(1)
        overlays.append(np.asarray(Image.open(result["overlay"])))
    assert (overlays[0] == overlays[1]).mean() > 0.95


def test_layers_are_quantized_one_by_one(folder, gpu):
    costs = []
    for device in ("cuda", "cpu"):
        settings = Sensitivity((2,), 16, "affine")
        costs.append(
            sensitivity.layers(params(device), settings, "model", list(rows(pictures()))[:1], ADE20K, BY_POSITION)
        )
    for actual, expected in zip(*costs, strict=True):
        assert actual["module"] == expected["module"]
        # Above 90 dB, what differs is the rounding of float32 itself.
        assert min(actual["snr_db"], 90) == pytest.approx(min(expected["snr_db"], 90), rel=0.01)


def test_a_time_is_that_of_the_gpu(folder, gpu, monkeypatch):
    for name in ("int8", "float32"):
        built(gpu, RECIPES[name], name)
    waits, seen, forward, synchronize = [], set(), speed.forward, torch.cuda.synchronize
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: (waits.append(1), synchronize(*device)))
    monkeypatch.setattr(speed, "forward", lambda model, inputs: (seen.add(inputs.device), forward(model, inputs))[1])
    options = Speed(input_size=(64, 64), batch_sizes=(1, 2), runs=2, warmup=1, engines=("eager",))
    result = speed.measure("int8", "float32", options, gpu)
    assert result["device"] == torch.cuda.get_device_name(gpu) and result["peak_memory_bytes"] > 0
    assert [lane["batch_size"] for lane in result["lanes"]] == [1, 2] and seen == {gpu}
    assert len(waits) == 2 * (
        1 + 2 * (2 + 4)
    )  # before and after each run: the first, then of two batches and two models


def test_the_built_in_model_is_trained(folder, gpu, monkeypatch):
    monkeypatch.setattr(models, "new_segformer_b0", lambda names: models.load("model").requires_grad_(True).train())
    options = Train(phases=(Phase(3, 64, 2), Phase(1, 32, 2)), images=3, ema=0.5, accumulate=2, workers=1, **UPKEEP)
    steps = []

    def record(step, curves, pictures):
        steps.append(step)
        if steps == [2, 4]:  # killed with a checkpoint of step 2
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        baseline.make_baseline(params(train=options), "out", "c.pt", record)
    baseline.make_baseline(params(train=options), "out", "c.pt", record)
    assert steps == [2, 4, 4] and 0 <= json.loads(Path("out/metrics.json").read_text())["mean_iou"] <= 1
    scored = rows(open_source(DATA, "val", UPKEEP["validation_images"]))
    known = {number for row in scored for number in np.unique(decode_annotation(row["annotation"])) if number < 150}
    words = f"{len(known)} of its 150 classes occur in the images that it was scored on."
    assert words in " ".join(Path("out/README.md").read_text().split())


def test_a_student_is_trained(folder, gpu):
    options = Distill(teacher="model", student="model", steps=2, crop=64, batch_size=2, images=3, workers=0, **UPKEEP)
    distill.make_student(params(distill=options), "out", "c.pt", training.silent)
    assert 0 <= json.loads(Path("out/metrics.json").read_text())["mean_iou"] <= 1


@pytest.mark.parametrize("teacher", ["float32", "none"])
def test_codes_are_trained(folder, gpu, teacher):
    layers = ("*stages.0*fc1", "*stages.0.patch_embeddings*", "*dwconv*")
    recipe = Recipe("int2", 16, "gptq", layers=layers, calibration=Calibration(2), train=replace(QAT, teacher=teacher))
    validate = baseline.scorer(params(), pictures(), ADE20K, IMAGENET, None)
    material = Material(list(rows(pictures("train"))), ADE20K, "three pictures", PROTOCOL, validate)
    qat.build_trained("model", recipe, Path("out"), gpu, images(), material, Path("c.pt"))
    assert same_classes(load_quantized("out", gpu), load_quantized("out")) > 0.95


@pytest.fixture
def graph(folder, monkeypatch):
    """A graph of `model`, exported before there is a GPU: torch.export asks CUDA itself, not PyTorch's functions."""
    monkeypatch.setattr(pt2e, "exported", lambda pixels, named: torch.export.export(pixels, (images(),)))
    return pt2e.prepared(models.load("model"), images(), trained=True)


def test_a_graph_is_trained(graph, gpu, monkeypatch):
    monkeypatch.setattr(finetune, "prepared", lambda *arguments, **options: graph)
    if not REAL:  # as what it is after an export in eval mode, without another export
        graph.train = lambda mode=True: graph
        monkeypatch.setattr(pt2e, "allow_exported_model_train_eval", lambda graph: graph)
        monkeypatch.setattr(finetune, "_as_trained", lambda graph, images: lambda pixels: graph(pixels).logits)
    options = Finetune(epochs=1, crop=64, batch_size=2, workers=0, **UPKEEP)
    recipe = Graph(engine="onnxruntime", weights="int8", algorithm="pt2e", calibration=Calibration(2), train=options)
    material = Material(list(rows(pictures("train"))), ADE20K, "three pictures", PROTOCOL)

    def build(fit, run):
        return {"graph": fit(models.load("model"), images())}

    made = finetune.build_finetuned(build, "model", recipe, gpu, material, Path("c.pt"), "a training")
    assert made["graph"](images()).isfinite().all()


def codes(gpu):
    built(gpu, replace(GPTQ, layers=("*stages.0*fc1",), overrides={}))


def figures(gpu):
    write_shards({"val": pictures()}, "shards")
    Path("map.yaml").write_text("map:\n" + "".join(f"  {i}: {i}\n" for i in range(150)))
    scored("cuda", PROTOCOL, "map.yaml", "float32")


def mutated(monkeypatch, module, name, text, other):
    """Replace a function, wherever it was imported, by one whose source has `other` for `text`."""
    function = getattr(module, name)
    source, names = textwrap.dedent(inspect.getsource(function)), {}
    assert text in source
    exec("from __future__ import annotations\n" + source.replace(text, other), module.__dict__, names)
    for each in [m for key, m in sys.modules.items() if key.startswith("segquant.") and vars(m).get(name) is function]:
        monkeypatch.setattr(each, name, names[name])


MISTAKES = [
    (recipes, "quantize", "images.to(device)", "images", codes),
    (
        recipes,
        "quantize",
        "_to(device, from_first(calibrated) if recipe.train else calibrated())",
        "calibrated()",
        codes,
    ),
    (calibrate, "calibrate", ", device=linear.weight.device", "", test_a_layer_without_inputs_is_rounded),
    (calibrate, "position_weights", "sampled.to(logits.device)", "sampled", codes),
    (gptq, "quantize_weight", ", device=hessian.device", "", codes),
    (fake, "_straight_through", "return rounded", "return rounded.cpu()", test_codes_are_trained),
    (head, "fused_products", "norm.bias.to(dtype)", "norm.bias.to(dtype).cpu()", figures),
    (artifacts, "save_quantized", ".detach().cpu()", ".detach()", codes),
    (artifacts, "load_artifact", "model.to(device)", "model", codes),
    (loop, "tally", "torch.from_numpy(label_map).to(device)", "torch.from_numpy(label_map)", figures),
    (loop, "tally", "dtype=torch.int64, device=device", "dtype=torch.int64", figures),
    (metric, "update", "(n + 1), dtype=torch.int64, device=label.device", "(n + 1), dtype=torch.int64", figures),
    (upsample, "dense_class_map", ", device=logits.device", "", figures),
    (reference, "write_reference", ".classes.cpu()", ".classes", figures),
    (predictions, "predict_pictures", ".classes.cpu()", ".classes", test_pictures_are_predicted),
    (sensitivity, "sensitivity", "*label.shape).cpu()", "*label.shape)", test_layers_are_quantized_one_by_one),
    (training, "_batches", "labels.to(device, non_blocking=True)", "labels", test_a_student_is_trained),
    (
        baseline,
        "make_baseline",
        "options.balance).to(model.device)",
        "options.balance)",
        test_the_built_in_model_is_trained,
    ),
    (distill, "make_student", "teacher.to(device)", "teacher", test_a_student_is_trained),
    (qat, "build_trained", "teacher.to(device)", "teacher", test_codes_are_trained),
]


@pytest.mark.parametrize(
    ("module", "name", "text", "other", "run"),
    MISTAKES,
    ids=[f"{module.__name__}.{name}" for module, name, *_ in MISTAKES],
)
def test_a_tensor_on_the_wrong_device_is_refused(folder, gpu, monkeypatch, module, name, text, other, run):
    mutated(monkeypatch, module, name, text, other)
    given = {"gpu": gpu, "folder": folder, "monkeypatch": monkeypatch, "teacher": "float32"}
    with pytest.raises((RuntimeError, TypeError), match=REFUSALS):
        run(**{argument: given[argument] for argument in inspect.signature(run).parameters})
