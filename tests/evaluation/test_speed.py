import json
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import small_segformer

from segquant import models
from segquant.base.config import Recipe, Speed
from segquant.evaluation import speed
from segquant.evaluation.speed import measure
from segquant.quant.build import build

CPU = torch.device("cpu")
SPEED = Speed(input_size=(64, 96), batch_sizes=(2, 3), runs=5, warmup=1)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    models.save(small_segformer(), folder / "tiny")
    for name, recipe in {"float32": Recipe("float32"), "int8": Recipe("int8")}.items():
        build(folder / "tiny", recipe, folder / name, CPU)
    return folder


@pytest.fixture
def artifacts(built, tmp_path):
    return shutil.copytree(built, tmp_path, dirs_exist_ok=True)


def test_what_is_measured(artifacts):
    result = measure(artifacts / "int8", artifacts / "float32", SPEED, CPU)
    latency = result["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] and latency["n"] == 5
    assert result["images_per_second"] == pytest.approx(2000 / latency["p50"])
    ratio = result["relative_to_float32"]
    assert ratio["min"] <= ratio["median"] <= ratio["max"]
    assert (result["engine"], result["batch_size"], result["input_size"], result["device"]) == (
        "eager",
        2,
        [64, 96],
        "cpu",
    )
    assert result["load_seconds"] > 0
    assert [(lane["engine"], lane["batch_size"]) for lane in result["lanes"]] == [("eager", 2), ("eager", 3)]
    first, second = result["lanes"]
    assert first.items() <= result.items() and first["agreement"] == 1.0
    assert second["images_per_second"] == pytest.approx(3000 / second["latency_ms"]["p50"])


def test_the_ratio_is_taken_pair_by_pair_and_above_one_is_faster(artifacts, monkeypatch):
    """A machine that gets slower half-way changes both of a pair, and so no ratio."""
    clock = iter([9, 9, 9, *(t for slow in (1, 1, 10, 10, 10) for t in (2 * slow, 3 * slow))])
    monkeypatch.setattr(speed, "_timed", lambda model, inputs: next(clock))
    single = replace(SPEED, batch_sizes=(2,))
    result = measure(artifacts / "int8", artifacts / "float32", single, CPU)
    assert result["relative_to_float32"] == {"median": 1.5, "min": 1.5, "max": 1.5}
    assert result["latency_ms"] == {"p50": 20_000, "p90": 20_000, "n": 5}


@pytest.mark.parametrize(("each", "pairs", "timed"), [(0.5, 50, 2), (4, 8, 2), (25, 3, 2), (40, 3, 1), (100, 1, 1)])
def test_a_slow_method_gets_fewer_runs_and_says_so(artifacts, monkeypatch, each, pairs, timed):
    """At 30 seconds a lane; what a pair of runs takes, how many there are, and how many batch sizes."""
    now = iter(range(100_000))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: each * next(now))
    monkeypatch.setattr(speed, "_timed", lambda model, inputs: each)
    options = replace(SPEED, runs=50, warmup=1, seconds=30)
    result = measure(artifacts / "int8", artifacts / "float32", options, CPU)
    assert result["latency_ms"]["n"] == pairs
    assert [("latency_ms" in lane) for lane in result["lanes"]] == [True, timed == 2]
    if timed == 1:
        assert result["lanes"][1]["unavailable"] == f"not timed, a smaller batch takes {each} s"


class Compiled(torch.nn.Module):
    def __init__(self, model, **_):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs)


BOTH = replace(SPEED, batch_sizes=(1,), engines=("compile", "eager"), runs=3)


def test_each_engine_is_timed_against_its_own_float32(artifacts, monkeypatch):
    monkeypatch.setattr(torch, "compile", Compiled)
    timed, pairs = speed._timed, []
    monkeypatch.setattr(speed, "_timed", lambda model, inputs: pairs.append(type(model)) or timed(model, inputs))
    result = measure(artifacts / "int8", artifacts / "float32", BOTH, CPU)
    assert result["engine"] == "compile" and result["compile_seconds"] > 0
    assert [lane["engine"] for lane in result["lanes"]] == ["compile", "eager"]
    assert "compile_seconds" not in result["lanes"][1]
    kinds = [kind is Compiled for kind in pairs]
    assert kinds == [False] + [True] * (2 + 2 + 6) + [False] * (2 + 6)


def test_a_model_that_computes_something_else_is_not_timed(artifacts, monkeypatch):
    class Wrong(Compiled):
        def forward(self, inputs):
            outputs = self.model(inputs)
            outputs.logits = outputs.logits.flip(1)
            return outputs

    monkeypatch.setattr(torch, "compile", Wrong)
    result = measure(artifacts / "int8", artifacts / "float32", BOTH, CPU)
    assert "agree with the evaluated model's on" in result["lanes"][0]["unavailable"]
    assert "latency_ms" not in result["lanes"][0]
    assert result["engine"] == "eager"


def test_an_engine_that_fails_is_told_and_the_others_are_timed(artifacts, monkeypatch):
    class Failing(Compiled):
        def forward(self, inputs):
            raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", Failing)
    result = measure(artifacts / "int8", artifacts / "float32", BOTH, CPU)
    assert result["lanes"][0]["unavailable"] == "torch.compile failed: no working C++ compiler"
    assert result["engine"] == "eager"
    alone = measure(artifacts / "int8", artifacts / "float32", replace(BOTH, engines=("compile",)), CPU)
    assert alone == {"unavailable": "torch.compile failed: no working C++ compiler"}


class Tiny(torch.nn.Module):
    def __init__(self, bias):  # dynamo has another graph for models of another kind only
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 4, 1, bias=bias)

    def forward(self, inputs):
        return SimpleNamespace(logits=self.layer(inputs))


@pytest.fixture
def compiled(monkeypatch):
    """The inputs' sizes of each graph that dynamo compiles, for a backend that takes no time."""
    graphs, compile_model = [], torch.compile

    def backend(graph, inputs):
        graphs.append(len(inputs[-1]))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **options: compile_model(model, backend=backend, **options))
    return graphs


def test_each_of_many_batch_sizes_is_compiled(compiled):
    """Dynamo keeps eight graphs of one `forward`, and ran what came later eagerly with a warning."""
    model, beside, sizes = Tiny(True), {"float32": Tiny(False)}, range(1, 7)
    for size in sizes:
        lane = speed._lane(model, beside, "compile", torch.ones(size, 3, 8, 8), SPEED)
        assert lane["latency_ms"]["n"] == 5
    assert compiled == [size for size in sizes for _ in ("model", "float32")]


def test_a_model_that_dynamo_would_run_eagerly_is_not_timed_as_compiled(compiled):
    with torch._dynamo.config.patch(recompile_limit=1):
        lane = speed._lane(Tiny(True), {"float32": Tiny(False)}, "compile", torch.ones(1, 3, 8, 8), SPEED)
    assert "torch.compile failed: " in lane["unavailable"] and "recompile_limit" in lane["unavailable"]
    assert "latency_ms" not in lane


@pytest.mark.slow
def test_compile_for_real(artifacts):
    result = measure(artifacts / "int8", artifacts / "float32", BOTH, CPU)
    assert result["engine"] == "compile" and result["agreement"] > 0.99
    assert result["compile_seconds"] > 1e-3 * result["latency_ms"]["p50"]


def test_the_fresh_process_counts_the_artifacts_memory_only(artifacts, tmp_path):
    """The peak is of loading and running, not of importing torch (some 300 MB)."""
    command = [
        sys.executable,
        "-m",
        "segquant.evaluation.speed",
        "--artifact",
        artifacts / "int8",
        "--float32",
        artifacts / "float32",
        "--exports",
        "none",
        "--speed",
        json.dumps({"input_size": [64, 96], "batch_sizes": [1], "runs": 2, "warmup": 1}),
        "--output",
        tmp_path / "speed.json",
    ]
    subprocess.run([str(c) for c in command], check=True, capture_output=True)
    peak = json.loads((tmp_path / "speed.json").read_text())["peak_memory_bytes"]
    assert 500_000 < peak < 200_000_000


def test_a_timing_ends_with_the_process_that_asked_for_it(tiny_folder, tmp_path):
    """Killing `segquant run` left it running."""
    build(tiny_folder, Recipe("float32"), tmp_path / "float32", CPU)
    speed = {"input_size": [64, 96], "batch_sizes": [1], "runs": 10**6, "warmup": 1, "seconds": 10**4}
    options = {"artifact": tmp_path / "float32", "float32": tmp_path / "float32", "exports": "none"}
    options |= {"speed": json.dumps(speed), "output": tmp_path / "speed.json"}
    command = [sys.executable, "-m", "segquant.evaluation.speed", "--attached"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert any("loaded" in line for line in process.stderr)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.stdin.close()
        assert process.wait(20) == 1
    assert not (tmp_path / "speed.json").exists()


def test_an_unavailable_artifact_is_reported(tiny_folder, tmp_path):
    build(tiny_folder, Recipe("float8", activations="float8"), tmp_path / "a", CPU)
    assert "8.9" in measure(tmp_path / "a", tmp_path / "a", SPEED, CPU)["unavailable"]
