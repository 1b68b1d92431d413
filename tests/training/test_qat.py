"""Quantization-aware training as a method: what is trained is what is stored, however the run went."""

import copy
import itertools
import json
from dataclasses import asdict, replace

import pytest
import torch
from conftest import ROOT, ade20k_folder, small_segformer
from torch import nn
from torch.nn.utils import parametrize

from segquant import lanes, models
from segquant.base.classes import ADE20K, CAMVID
from segquant.base.config import Auto, Calibration, Data, Override, Qat, Recipe, load
from segquant.base.errors import ConfigError, DataError, ModelError, SegquantError, UnavailableError
from segquant.data.preprocessing import read_preprocessing
from segquant.data.rows import rows
from segquant.data.shards import write_shards
from segquant.data.sources import open_source
from segquant.engines import extras
from segquant.quant import recipes as methods
from segquant.quant.artifacts import describe_artifact, load_quantized
from segquant.quant.build import build
from segquant.quant.points import Points
from segquant.quant.recipes import quantize
from segquant.training import losses, material, qat, split
from segquant.training.baseline import scorer
from segquant.training.data import Crops
from segquant.training.losses import distillation
from segquant.training.split import split_of_shards

CPU = torch.device("cpu")
TRAIN = Qat(
    steps=6, crop=64, batch_size=2, lr=0.05, warmup=1, amp="float32", workers=0, checkpoint_every=2, validate_every=3
)
RECIPE = Recipe("int2", 16, "gptq", calibration=Calibration(2), train=TRAIN)
ROWS = list(rows(open_source("scenes", "train", 4)))
PROTOCOL = "fixed-96x96-v1"


@pytest.fixture(autouse=True)
def calibrate_once(monkeypatch, known={}):  # noqa: B006
    """The same model calibrated again gives the same: tests/quant/test_calibrate.py."""
    calibrate = methods.calibrate

    def remembered(model, layers, images):
        key = str(sorted(layers.items())) + str([float(t.double().sum()) for t in model.state_dict().values()])
        if key not in known:
            known[key] = calibrate(model, layers, images)
        return copy.deepcopy(known[key])

    monkeypatch.setattr(methods, "calibrate", remembered)


@pytest.fixture
def baseline(tmp_path):
    models.save(small_segformer(stages=2), tmp_path / "baseline")
    return tmp_path / "baseline"


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


MATERIAL = qat.Material(ROWS, ADE20K, "four scenes", PROTOCOL)
WITHOUT_LABELS = MATERIAL._replace(rows=[{**row, "annotation": None} for row in ROWS], classes=())


def made(baseline, folder, recipe=RECIPE, material=MATERIAL):
    return qat.build_trained(baseline, recipe, folder, CPU, images(), material, folder.with_suffix(".pt"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights of the baseline after training by RECIPE, as bytes."""
    folder = tmp_path_factory.mktemp("trained")
    models.save(small_segformer(stages=2), folder / "baseline")
    made(folder / "baseline", folder / "out")
    return state(folder / "out")


def logits(model):
    with torch.inference_mode():
        return model(images()).logits


def state(folder):
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_trained_logits_are_those_of_the_stored_artifact_bit_for_bit(bits, baseline, tmp_path, monkeypatch):
    """The fake-quantized model, its norms and biases as they will be stored, just before its codes are taken out."""
    seen, float32 = {}, small_segformer(stages=4 if bits == 2 else 2)
    for statistics in float32.decode_head.batch_norm.buffers():
        statistics.copy_(torch.rand(statistics.shape) + 0.5)  # which float16 does not hold
    models.save(float32, baseline)
    detach = qat._detach

    def spy(model, names, convs):
        model.requires_grad_(False)
        qat.round_rest(model)
        seen["trained"] = logits(model)
        return detach(model, names, convs)

    monkeypatch.setattr(qat, "_detach", spy)
    made(baseline, tmp_path / "out", replace(RECIPE, weights=f"int{bits}"))
    stored = load_quantized(tmp_path / "out")
    assert torch.equal(seen["trained"], logits(stored))
    build(baseline, replace(RECIPE, weights=f"int{bits}", train=None), tmp_path / "start", CPU, images())
    assert not torch.equal(logits(stored), logits(load_quantized(tmp_path / "start")))


def test_every_dense_layer_takes_part_and_training_brings_it_nearer(baseline, tmp_path, monkeypatch):
    parametrized = []
    train = material.train

    def spy(model, *arguments, **keywords):
        parametrized.extend(m for m in model.modules() if parametrize.is_parametrized(m))
        return train(model, *arguments, **keywords)

    monkeypatch.setattr(material, "train", spy)
    longer = replace(RECIPE, train=replace(TRAIN, steps=200, lr=0.01))
    float32 = small_segformer(stages=2)
    float32.decode_head.classifier.weight.data *= 300  # sure of what it sees, as a model that has learned something
    models.save(float32, baseline)
    made(baseline, tmp_path / "out", longer)
    layers = [m for m in float32.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert len(parametrized) == len(layers)
    build(baseline, replace(longer, train=None), tmp_path / "start", CPU, images())

    crops = Crops(ROWS, 64, (1.0, 1.0), 1, 0, 8, PROTOCOL)
    pictures = torch.stack([crops[i][0] for i in range(8)])

    def off(folder):
        with torch.inference_mode():
            return float(distillation(load_quantized(folder)(pictures).logits, float32(pictures).logits))

    assert off(tmp_path / "out") < 0.8 * off(tmp_path / "start")


@pytest.mark.parametrize("learning", [True, False])
def test_ranges_are_learned_only_if_asked(learning, baseline, tmp_path):
    recipe = replace(RECIPE, train=replace(TRAIN, range_learning=learning, lr=5.0))
    made(baseline, tmp_path / "out", recipe)
    build(baseline, replace(recipe, train=None), tmp_path / "start", CPU, images())
    name = "decode_head.classifier.linear.weight"
    trained, start = (load_quantized(tmp_path / one).state_dict()[name] for one in ("out", "start"))
    assert torch.equal(trained.scale, start.scale) != learning
    assert not torch.equal(trained.qdata, start.qdata)


def test_averaged_codes_are_codes_too(baseline, tmp_path):
    made(baseline, tmp_path / "a", replace(RECIPE, train=replace(TRAIN, ema=0.5, lr=0.3)))
    made(baseline, tmp_path / "b", replace(RECIPE, train=replace(TRAIN, lr=0.3)))
    averaged, last = (load_quantized(tmp_path / name).state_dict() for name in "ab")
    name = "decode_head.linear_fuse.linear.weight"
    assert not torch.equal(averaged[name].qdata, last[name].qdata)
    assert averaged[name].qdata.int().abs().max() <= 2


def test_it_works_without_labels(baseline, trained, tmp_path):
    made(baseline, tmp_path / "out", material=WITHOUT_LABELS)
    assert state(tmp_path / "out") == trained


def test_without_a_teacher_it_learns_from_labels(baseline, trained, tmp_path):
    alone = replace(RECIPE, train=replace(TRAIN, teacher="none"))
    made(baseline, tmp_path / "a", alone)
    assert state(tmp_path / "a") != trained
    with pytest.raises(DataError, match="teacher 'none' learns from labels, and no pixel of the train split has one"):
        made(baseline, tmp_path / "c", alone, WITHOUT_LABELS)
    with pytest.raises(ConfigError, match="has 150 classes and the train split 11: it cannot learn from these labels"):
        made(baseline, tmp_path / "c", alone, MATERIAL._replace(classes=CAMVID))
    with pytest.raises(ConfigError, match="the train split others, or in another order: it cannot learn from th"):
        made(baseline, tmp_path / "c", alone, MATERIAL._replace(as_labelled=False))


def test_another_teacher_is_another_model(baseline, trained, tmp_path):
    torch.manual_seed(1)
    other = small_segformer()
    other.decode_head.classifier.bias.data += 5 * torch.randn(150)
    models.save(other, tmp_path / "other")
    made(baseline, tmp_path / "out", replace(RECIPE, train=replace(TRAIN, teacher=str(tmp_path / "other"))))
    assert state(tmp_path / "out") != trained


def wrong_teachers(folder):
    models.save(small_segformer(7), folder / "seven")
    models.save(small_segformer(), folder / "otherwise")
    path = folder / "otherwise" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.5, 0.5, 0.5]}))


@pytest.mark.parametrize(
    "teacher, message",
    [
        ("nowhere", "model 'nowhere' is not there: give a folder, a hub id"),
        ("seven", "seven has 7 classes, not the 150 of .*baseline: take another"),
        ("otherwise", "otherwise takes its pixels as .*0.5, 0.5.* and .*baseline as .*0.485"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line_and_nothing_is_written(
    teacher, message, baseline, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    wrong_teachers(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        made(baseline, tmp_path / "out", replace(RECIPE, train=replace(TRAIN, teacher=teacher)))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_no_images_to_train_on(baseline, tmp_path):
    with pytest.raises(DataError, match="there are no images to train on"):
        made(baseline, tmp_path / "out", material=MATERIAL._replace(rows=[]))


@pytest.mark.parametrize(
    "other",
    [
        {"algorithm": "affine", "calibration": None},
        {"activations": "int8"},
        {"overrides": {"decode_head.*": Override(algorithm="hqq")}},
    ],
)
def test_what_cannot_be_trained_is_said_before_anything_is_done(other):
    with pytest.raises(ConfigError, match="train starts from algorithm gptq in every layer and float activations"):
        quantize(small_segformer(), replace(RECIPE, **other), CPU, images())


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5])
def test_killed_anywhere_it_ends_with_the_same_bytes(stop, baseline, trained, tmp_path, monkeypatch):
    count, distillation = itertools.count(), losses.distillation

    def dying(*arguments):
        if next(count) == stop:
            raise KeyboardInterrupt
        return distillation(*arguments)

    monkeypatch.setattr(losses, "distillation", dying)
    with pytest.raises(KeyboardInterrupt):
        made(baseline, tmp_path / "killed")
    assert not (tmp_path / "killed").exists() and (tmp_path / "killed.pt").exists() == (stop >= 2)
    monkeypatch.setattr(losses, "distillation", distillation)
    made(baseline, tmp_path / "killed")
    assert state(tmp_path / "killed") == trained


def test_the_checkpoint_of_another_recipe_is_refused(baseline, tmp_path, monkeypatch):
    monkeypatch.setattr(qat, "_detach", lambda *_: 1 / 0)  # after the last checkpoint
    with pytest.raises(ZeroDivisionError):
        made(baseline, tmp_path / "out")
    other = replace(RECIPE, train=replace(TRAIN, lr=0.1))
    monkeypatch.setattr(methods, "calibrate", lambda *_: 1 / 0)  # minutes
    with pytest.raises(
        SegquantError, match=r"out\.pt is the checkpoint of another run \(int2 weights .*, then 6 steps"
    ):
        made(baseline, tmp_path / "out", other)


@pytest.fixture
def pipeline(baseline, tmp_path, monkeypatch):
    """The pipeline's shards, and a function that calls it for the method `mine` with this recipe."""
    monkeypatch.chdir(tmp_path)
    sources = {split: open_source("scenes", split, 4) for split in ("train", "validation")}
    write_shards(sources, tmp_path / "shards")

    def call(folder, recipe=RECIPE, **other):
        params = load(ROOT / "params.yaml")
        quant = replace(params.quant, methods={**params.quant.methods, "mine": recipe})
        params = replace(params, protocol=PROTOCOL, quant=quant, **other)
        return lanes.quantize(
            params,
            "mine",
            baseline,
            folder,
            lambda: split_of_shards(params, baseline, tmp_path / "shards"),
            exports=tmp_path,
            checkpoint=tmp_path / "mine.pt",
            trained=tmp_path / "trained" / "mine",
            may_fail=False,
        )

    return call


def test_what_the_very_same_training_made_is_taken_and_nothing_else_is(pipeline, tmp_path, monkeypatch):
    ready = tmp_path / "trained" / "mine"
    times = pipeline(ready)
    ready.with_name("mine.json").write_text(json.dumps(times))

    def refuse(*_, **__):
        raise AssertionError("it trains")

    monkeypatch.setattr(material, "train", refuse)
    for same in (RECIPE, replace(RECIPE, train=replace(TRAIN, workers=2, validate_every=1, checkpoint_every=1))):
        taken = pipeline(tmp_path / "out", same)
        assert taken == {**times, "taken_from": str(ready)} and state(tmp_path / "out") == state(ready)
    for other in (replace(RECIPE, train=replace(TRAIN, seed=1)), replace(RECIPE, group_size=8)):
        with pytest.raises(AssertionError, match="it trains"):
            pipeline(tmp_path / "out", other)
    with pytest.raises(AssertionError, match="it trains"):
        pipeline(tmp_path / "out", data=Data("another"))
    with pytest.raises(AssertionError, match="it trains"):
        write_shards({s: open_source("scenes", s, 5) for s in ("train", "validation")}, tmp_path / "shards")
        pipeline(tmp_path / "out")


def test_a_training_that_cannot_run_here_stops_and_leaves_what_is_there(pipeline, tmp_path, monkeypatch):
    """A committed artifact became one that says "unavailable", with exit code 0."""
    committed = tmp_path / "committed"
    committed.mkdir()
    (committed / "model.onnx").touch()
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="^mine cannot be made here: onnx.* not installed: pip install"):
        pipeline(committed, load(ROOT / "params.yaml").quant.methods["int8_static_qat"])
    assert [path.name for path in committed.iterdir()] == ["model.onnx"]
    monkeypatch.setattr(qat, "build_trained", lambda *_: {"unavailable": "no such kernel"})
    (tmp_path / "mine.pt").touch()
    with pytest.raises(UnavailableError, match="^mine cannot be made here: no such kernel$"):
        pipeline(tmp_path / "out")
    assert (tmp_path / "mine.pt").exists()


def test_the_repositorys_own_artifacts_are_those_of_its_parameters(tmp_path, monkeypatch):
    """Or `make repro` would train them anew."""
    monkeypatch.setattr(material, "train", lambda *_, **__: 1 / 0)
    params, float32 = load(ROOT / "params.yaml"), ROOT / "models" / "scenes-b0"
    images = {"train": params.data.limit, "validation": 1}  # of those, no training takes any
    write_shards({split: open_source(params.data, split, count) for split, count in images.items()}, tmp_path / "s")
    methods = [name for name, recipe in params.quant.methods.items() if recipe.train]
    assert set(methods) == {"int4_qat", "int2_qat", "auto_qat", "int8_static_qat"}
    for method in methods:
        trained = ROOT / "models" / "trained" / method
        times = lanes.quantize(
            params,
            method,
            float32,
            tmp_path / method,
            lambda: split_of_shards(params, float32, tmp_path / "s"),
            exports=tmp_path,
            checkpoint=tmp_path / f"{method}.pt",
            trained=trained,
        )
        assert times["taken_from"] == str(trained)


def test_another_float_model_is_another_training_and_a_damaged_artifact_is_one_line(pipeline, tmp_path, monkeypatch):
    ready = tmp_path / "trained" / "mine"
    ready.parent.mkdir()
    ready.with_name("mine.json").write_text(json.dumps(pipeline(ready)))
    monkeypatch.setattr(material, "train", lambda *_, **__: 1 / 0)
    kept = (tmp_path / "baseline" / "model.safetensors").read_bytes()
    models.save(small_segformer(stages=2).half().float(), tmp_path / "baseline")
    with pytest.raises(ZeroDivisionError):
        pipeline(tmp_path / "out")
    (tmp_path / "baseline" / "model.safetensors").write_bytes(kept)
    with open(ready / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(ModelError, match="missing or not as it was written"):
        pipeline(tmp_path / "out")


def test_the_artifact_says_how_it_was_trained(baseline, tmp_path):
    made(baseline, tmp_path / "out")
    info = describe_artifact(tmp_path / "out")
    assert info["recipe"] == json.loads(json.dumps(asdict(RECIPE)))
    assert info["run"].startswith("int2 weights of all Linear and Conv2d layers (gptq on 2 images, then 6 steps")


def test_weights_auto_are_trained_on_the_grids_that_were_chosen(baseline, tmp_path):
    model = models.load(baseline)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # as trained ones, float16 holds them
            parameter.data += 0.1
    models.save(model, baseline)
    recipe = Auto(weights="auto", megabytes=0.07, group_sizes=(8, 16), calibration=Calibration(2), train=TRAIN)
    made(baseline, tmp_path / "out", recipe)
    made(baseline, tmp_path / "untrained", replace(recipe, train=replace(TRAIN, lr=0.0)))
    info, start = (describe_artifact(tmp_path / name) for name in ("out", "untrained"))
    assert info["allocation"] == start["allocation"] and info["run"] != start["run"]
    for name, layer in info["allocation"]["layers"].items():
        module = info["modules"][name]
        assert (module["bits"], module["group_size"]) == (layer["bits"], layer["group_size"])
    assert len({layer["bits"] for layer in info["allocation"]["layers"].values()}) > 1
    files = [tmp_path / name / "model.safetensors" for name in ("out", "untrained")]
    assert max(file.stat().st_size for file in files) <= 70_000
    assert files[0].read_bytes() != files[1].read_bytes()
    assert "chosen for 0.07 MB (gptq on 2 images, then 6 steps of training towards float32" in info["run"]


def test_a_budget_in_points_is_scored_on_the_train_split(pipeline, tmp_path, monkeypatch):
    scored = []
    points = Points(lambda _model: 7.0, "mIoU")
    monkeypatch.setattr(split.TrainSplit, "points_or_agreement", lambda _split, count: scored.append(count) or points)
    recipe = Auto(weights="auto", points=0.5, layers=("decode_head.*",), calibration=Calibration(2))
    pipeline(tmp_path / "out", recipe)
    info = describe_artifact(tmp_path / "out")
    assert scored == [128]
    assert [entry["points"] for entry in info["allocation"]["tried"]] == [0.0] * 7  # each keeps it
    assert info["allocation"]["bytes"] == min(entry["bytes"] for entry in info["allocation"]["tried"])


def test_validation_sees_what_will_be_stored(baseline, tmp_path):
    """The figure shown at the end is the artifact's own."""
    ade20k_folder(tmp_path / "data", "validation", 2)
    source = open_source(str(tmp_path / "data"), "validation")
    seen = []
    params = replace(load(ROOT / "params.yaml"), protocol="fixed-64x64-v1")
    score = scorer(params, source, source.classes, read_preprocessing(baseline), None)
    made(baseline, tmp_path / "out", material=MATERIAL._replace(validate=lambda m: seen.append(score(m)) or seen[-1]))
    assert len(seen) == 2
    again = score(load_quantized(tmp_path / "out"))
    assert again.scores.mean_iou == pytest.approx(seen[-1].scores.mean_iou, abs=2e-4)


def test_budgets_and_validation_are_scored_without_autocast(baseline):
    """eval.dtype is of evaluations alone: no quantize stage depends on it, and no model card names it."""
    params, source, types = load(ROOT / "params.yaml"), open_source("scenes", "validation", 1), set()
    params = replace(params, protocol="fixed-64x64-v1", eval=replace(params.eval, dtype="bfloat16"))
    model = models.load(baseline)
    model.decode_head.classifier.register_forward_hook(lambda _module, _inputs, logits: types.add(logits.dtype))
    scorer(params, source, source.classes, read_preprocessing(baseline), None)(model)
    assert types == {torch.float32}


def test_a_crop_is_of_the_models_input_unless_it_is_said(baseline, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        material, "train", lambda model, samples, loss, options, phases, *_, **__: seen.extend(phases) or 0.0
    )
    made(baseline, tmp_path / "a", replace(RECIPE, train=replace(TRAIN, crop=None)))
    made(baseline, tmp_path / "b")
    assert [phase.crop for phase in seen] == [96, 64]
    with pytest.raises(ConfigError, match="crop 128 is larger than fixed-96x96-v1's images"):
        made(baseline, tmp_path / "c", replace(RECIPE, train=replace(TRAIN, crop=128)))
