"""One method fails, wherever: the others finish, its reason stands in every result, and the exit code is 4."""

import errno
import importlib
import json
import subprocess
import sys
from types import SimpleNamespace

import onnx
import pytest
import torch
import yaml
from conftest import ROOT, ade20k_folder, small_segformer

from segquant import cli, lanes, models
from segquant.base import entry
from segquant.base.config import Eval, Graph
from segquant.base.errors import DataError, MethodsFailed, ModelError, SegquantError
from segquant.base.failures import failure
from segquant.base.files import read_json, write_json
from segquant.data.shards import open_shards, write_shards
from segquant.data.sources import open_source
from segquant.deploy import onnx_export
from segquant.deploy.build import build_graph
from segquant.deploy.onnx_export import write_exports
from segquant.evaluation import score as scoring
from segquant.evaluation.reference import write_reference
from segquant.quant import build as building
from segquant.quant.artifacts import describe_artifact, load_artifact

FULL = OSError(errno.ENOSPC, "No space left on device")


def raising(error, original=None, when=lambda *arguments: True):
    """A function that raises `error` where `when` says so, and else does what `original` does."""

    def call(*arguments, **options):
        if when(*arguments):
            raise error
        return original(*arguments, **options)

    return call


def is_int8(*arguments):
    return any(getattr(argument, "weights", None) == "int8" or str(argument).endswith("int8") for argument in arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a small model, `m`, and params.yaml with three methods and a short timing."""
    folder = tmp_path_factory.mktemp("place")
    models.save(small_segformer(stages=1), folder / "m")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"protocol": "fixed-64x64-v1", "model": {"source": str(folder / "m")}}
    params["data"]["limit"] = 2
    params["eval"]["pictures"] = 1
    params["speed"] = {"input_size": [64, 64], "batch_sizes": [1], "runs": 2, "warmup": 1}
    names = ("float32", "int8", "bfloat16")
    params["quant"] |= {
        "method": "int8",
        "methods": {name: params["quant"]["methods"][name] for name in names},
        "packed": {},
    }
    params["quant"]["methods"]["onnx_float32"] = {"engine": "onnxruntime", "weights": "float32"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


@pytest.fixture
def timed(monkeypatch):
    """Timings that take no time; those of the methods in the dict end with this code and these words."""
    failing = {}

    def timing(command, **_options):
        artifact, target = (command[command.index(f"--{name}") + 1] for name in ("artifact", "output"))
        if known := failing.get(artifact.rpartition("/")[2]):
            return subprocess.CompletedProcess(command, known[0], "", known[1])
        write_json(target, {"unavailable": "not asked for"})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(lanes, "subprocess", SimpleNamespace(run=timing))
    return failing


def run(place, output, methods="float32,int8,bfloat16", *options):
    """`segquant run` in this process. Raises what its frame turns into an exit code."""
    known = ["--params", place / "params.yaml", "--model", place / "m", "--output", output]
    split = ["--data", "scenes", "--split", "validation", "--limit", "2"]
    arguments = cli.parser().parse_args(["run", *map(str, known), *split, "--methods", methods, *map(str, options)])
    arguments.main(arguments)


CASES = {
    "torchao": (building, "quantize", RuntimeError("two\nlines"), "RuntimeError: two lines"),
    "memory": (building, "quantize", MemoryError(), "MemoryError"),
    "gpu memory": (building, "quantize", torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of"),
    "artifact": (building, "save_quantized", ModelError("it does not give the logits"), "it does not give the logits"),
    "evaluation": (scoring, "load", ValueError("no such kernel"), "ValueError: no such kernel"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_method_that_fails_stops_no_other(case, place, timed, tmp_path, monkeypatch, capsys):
    module, name, error, reason = CASES[case]
    monkeypatch.setattr(module, name, raising(error, getattr(module, name), is_int8))
    with pytest.raises(MethodsFailed, match="^int8 failed, as the results say; the other methods are done") as raised:
        run(place, tmp_path / "out")
    assert raised.value.exit_code == 4
    results, shown = read_json(tmp_path / "out" / "results.json"), capsys.readouterr()
    assert list(results) == ["float32", "int8", "bfloat16"]
    assert list(results["int8"]) == ["failed"] and results["int8"]["failed"].startswith(reason)
    assert results["bfloat16"]["n_images"] == 2 and results["float32"]["agreement"] == 1
    assert f"int8 failed: {reason}" in shown.out and "bfloat16" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert not list((tmp_path / "out").rglob("*/int8.csv"))
    assert (tmp_path / "out" / "partial").is_dir()  # for the next run


def test_json_says_it_too_and_a_run_after_the_failure_is_whole(place, timed, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(building, "quantize", raising(RuntimeError("x"), building.quantize, is_int8))
        with pytest.raises(MethodsFailed):
            run(place, tmp_path / "out", "float32,int8", "--json")
    assert json.loads(capsys.readouterr().out)["int8"] == {"failed": "RuntimeError: x"}
    with pytest.raises(ModelError, match="holds no model, as the method failed: RuntimeError: x"):
        load_artifact(tmp_path / "out" / "artifacts" / "int8")
    run(place, tmp_path / "out", "float32,int8")
    assert read_json(tmp_path / "out" / "results.json")["int8"]["n_images"] == 2
    assert not (tmp_path / "out" / "partial").exists()


@pytest.mark.parametrize(
    ("code", "last", "words"),
    [(-9, "", "it gave no reason; was it out of memory?"), (2, "error: no such device\n", "no such device")],
)
def test_a_timing_that_ends_leaves_the_accuracy(code, last, words, place, timed, tmp_path, capsys):
    timed["int8"] = (code, f"INFO segquant.engines.load: loaded it\n{last}")
    with pytest.raises(MethodsFailed, match="^int8 failed"):
        run(place, tmp_path / "out")
    int8 = read_json(tmp_path / "out" / "results.json")["int8"]
    reason = f"timing ended with code {code}: {words}"
    assert int8["speed"] == {"failed": reason} and int8["n_images"] == 2
    assert f"int8 failed in timing: {reason}." in capsys.readouterr().out


def test_two_data_sets_show_a_method_that_failed_on_one(place, timed, tmp_path, monkeypatch, capsys):
    folders = [ade20k_folder(tmp_path / name, "validation", 2) for name in ("a", "b")]
    original = scoring.load
    calls = []

    def second(*arguments):
        calls.append(str(arguments[0]).endswith("int8"))
        return sum(calls) == 2 and calls[-1]

    monkeypatch.setattr(scoring, "load", raising(ValueError("x"), original, second))
    arguments = ["run", "--params", place / "params.yaml", "--model", place / "m", "--output", tmp_path / "out"]
    arguments += ["--data", folders[0], "--data", folders[1], "--split", "validation", "--methods", "float32,int8"]
    arguments = cli.parser().parse_args(list(map(str, arguments)))
    with pytest.raises(MethodsFailed, match="^int8 failed"):
        arguments.main(arguments)
    results = read_json(tmp_path / "out" / "results.json")
    assert results["b"]["int8"] == {"failed": "ValueError: x"} and results["a"]["int8"]["n_images"] == 2
    shown = capsys.readouterr().out
    assert "b: int8 failed: ValueError: x." in shown and any(line.startswith("int8 ") for line in shown.splitlines())


@pytest.mark.parametrize(
    ("module", "name", "error", "expected"),
    [
        (building, "save_quantized", FULL, OSError),  # a full disk
        (building, "quantize", KeyboardInterrupt(), KeyboardInterrupt),
        (scoring, "load", DataError("a.png is broken"), DataError),  # all methods are scored on it
    ],
)
def test_what_is_everybodys_stops_all(module, name, error, expected, place, timed, tmp_path, monkeypatch):
    monkeypatch.setattr(module, name, raising(error, getattr(module, name), is_int8))
    with pytest.raises(expected):
        run(place, tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(("module", "name"), [(building, "quantize"), (scoring, "load")])
def test_without_float32_there_is_nothing_to_compare_with(module, name, place, timed, tmp_path, monkeypatch):
    monkeypatch.setattr(module, name, raising(RuntimeError("x")))
    with pytest.raises(ModelError, match="^float32 failed: RuntimeError: x$"):
        run(place, tmp_path / "out")


def test_a_storage_error_inside_another_and_a_process_of_torchrun_stop_all(monkeypatch):
    error = SegquantError("cannot write out")
    error.__cause__ = FULL
    with pytest.raises(SegquantError, match="cannot write out"):
        failure("int8", error)
    assert failure("int8", ValueError("at out/.tmp-segquant-abc/int8")) == {"failed": "ValueError: at out/int8"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModelError, match="int8 failed: ValueError: x"):
        failure("int8", ValueError("x"))


def test_the_log_of_a_run_has_the_traceback_and_the_terminal_one_line(place, tmp_path):
    """The command as a user runs it; a one-layer MobileNetV2, whose sizes torch.export takes for constants."""
    from transformers import AutoModelForSemanticSegmentation, MobileNetV2Config

    config = MobileNetV2Config(depth_multiplier=0.25, image_size=64, num_labels=150)
    models.save(AutoModelForSemanticSegmentation.from_config(config).eval(), tmp_path / "m")
    command = [sys.executable, "-m", "segquant", "run", "--params", place / "params.yaml", "--model", tmp_path / "m"]
    command += ["--data", "scenes", "--split", "validation", "--limit", "2", "--output", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--methods", "float32,onnx_float32"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: onnx_float32 failed, as the results say")
    assert "Traceback" not in done.stdout + done.stderr
    results = read_json(tmp_path / "out" / "results.json")
    assert results["onnx_float32"]["failed"].startswith("torch.export cannot export this model: ")
    assert results["float32"]["speed"]["latency_ms"]["n"] == 2
    log = (tmp_path / "out" / "run.log").read_text()
    assert "Traceback" in log and "--methods float32,onnx_float32" in log


@pytest.fixture
def exporting(exported_model, monkeypatch):
    """The model's folder; its export takes no time."""
    graph = onnx.load(exported_model / "onnx/float32.onnx")
    monkeypatch.setattr(onnx_export, "exported", lambda pixels: None)
    monkeypatch.setattr(onnx_export, "to_onnx", lambda *arguments: graph)
    return exported_model / "model"


def test_float16_alone_may_fail_and_who_asks_for_both_is_told(exporting, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_to_float16", raising(RuntimeError("no")))
    write_exports(exporting, tmp_path / "onnx")
    summary = read_json(tmp_path / "onnx" / "export.json")
    assert summary["float16"] == {"failed": "RuntimeError: no"} and summary["float32"]["agreement"] > 0.98
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["export.json", "float32.onnx"]
    recipes = {weights: Graph(engine="onnxruntime", weights=weights) for weights in ("float32", "float16")}
    assert "failed" not in build_graph(exporting, recipes["float32"], tmp_path / "a", tmp_path / "onnx")
    assert build_graph(exporting, recipes["float16"], tmp_path / "b", tmp_path / "onnx") == summary["float16"]
    with pytest.raises(RuntimeError):
        onnx_export.export_onnx(exporting, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_difference_that_is_no_number_refuses_an_export(exporting, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export.np, "abs", lambda values: values * float("nan"))
    write_exports(exporting, tmp_path / "onnx")
    assert "float32 ONNX model does not match PyTorch" in read_json(tmp_path / "onnx" / "export.json")["failed"]


@pytest.fixture
def stage(place, tmp_path, monkeypatch):
    """Runs a stage in this process, in a folder with params.yaml, shards and a reference."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    params = yaml.safe_load((place / "params.yaml").read_text())
    del params["quant"]["methods"]["onnx_float32"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    splits = {split: open_source("scenes", split, 2) for split in ("train", "validation")}
    write_shards(splits, "data/shards")
    shards = open_shards("data/shards", "validation")
    write_reference(
        place / "m",
        shards,
        "data/reference",
        protocol="fixed-64x64-v1",
        settings=Eval(),
        partial=tmp_path / "partial",
    )
    write_json("models/onnx/export.json", {"unavailable": "not asked for"})
    write_json("metrics/hardware.json", {"processor": "x", "instructions": [], "cores": 2, "gpu": None})
    write_json("metrics/layers.json", {})

    def call(name, **options):
        arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        importlib.import_module(f"stages.{name}").main()

    return call


def lane(stage, place, method):
    artifact = f"models/quantized/{method}"
    stage(
        "quantize",
        method=method,
        baseline=place / "m",
        shards="data/shards",
        exports="models/onnx",
        trained="models/trained",
        output=artifact,
        times=f"metrics/quantize/{method}.json",
    )
    stage(
        "evaluate",
        method=method,
        artifact=artifact,
        shards="data/shards",
        reference="data/reference",
        partial=f"metrics/partial/{method}",
        metrics=f"metrics/accuracy/{method}.json",
        classes=f"metrics/classes/{method}.csv",
        pictures=f"metrics/predictions/{method}",
    )
    stage(
        "benchmark",
        artifact=artifact,
        float32="models/quantized/float32",
        exports="models/onnx",
        output=f"metrics/speed/{method}.json",
    )


def test_in_the_pipeline_the_lane_passes_the_reason_on_and_the_last_stage_fails(
    stage, place, tmp_path, monkeypatch, capsys
):
    lane(stage, place, "float32")
    with monkeypatch.context() as patch:
        patch.setattr(building, "quantize", raising(RuntimeError("x")))
        lane(stage, place, "int8")
    monkeypatch.setattr(scoring, "load", raising(ValueError("y"), scoring.load, lambda path, *_: "bf" in str(path)))
    lane(stage, place, "bfloat16")
    expected = {"failed": "RuntimeError: x"}
    assert describe_artifact("models/quantized/int8")["failed"] == expected["failed"]
    for name in ("quantize", "accuracy", "speed"):
        assert read_json(f"metrics/{name}/int8.json") == expected
    assert read_json("metrics/predictions/bfloat16/metrics.json") == {"failed": "ValueError: y"}
    stage("select", results="metrics/predictions", output="metrics/selected.json", confusion="metrics/confusion.csv")
    assert read_json("metrics/selected.json") == {"method": "int8", **expected}
    stage(
        "report",
        metrics="metrics",
        shards="data/shards",
        baseline=place / "m",
        artifacts="models/quantized",
        csv="metrics/results.csv",
        classes="metrics/class_loss.csv",
        page="metrics/report/index.html",
    )
    page = (tmp_path / "metrics/report/index.html").read_text()
    assert "failed: RuntimeError: x" in page and "failed: ValueError: y" in page
    with pytest.raises(MethodsFailed, match="^bfloat16, int8 failed.*dvc repro --force --downstream quantize@METHOD"):
        stage("complete", metrics="metrics")
    assert "int8 failed: RuntimeError: x." in capsys.readouterr().out
    arguments = cli.parser().parse_args(["report", "--params", "params.yaml"])
    with pytest.raises(MethodsFailed, match="^bfloat16, int8 failed"):
        arguments.main(arguments)


def test_in_the_pipeline_a_bad_recipe_is_still_the_users_mistake(stage, place, tmp_path):
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["quant"]["methods"]["bad"] = {"weights": "int4", "group_size": 11}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(SegquantError, match="group_size 11 divides the inputs of no layer") as raised:
        lane(stage, place, "bad")
    assert raised.value.exit_code == 2 and not (tmp_path / "models/quantized").exists()


def test_a_command_ends_with_the_exit_code_of_its_error(capsys):
    for error, code in ((MethodsFailed("x failed"), 4), (SegquantError("x"), 2), (FULL, 2)):
        with pytest.raises(SystemExit) as raised:
            entry.run(raising(error))
        assert raised.value.code == code
    assert capsys.readouterr().err.splitlines()[0] == "error: x failed"
