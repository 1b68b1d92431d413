"""The real pipeline in a temporary clone: what is built, what is rebuilt, and what it tells."""

import csv
import hashlib
import json
import re
import shutil
import sys
import time

import numpy as np
import pytest
import vl_convert
import yaml
from browser import colours, needs_browser, probed, shot
from clones import copied, ran, sh
from conftest import ROOT, ade20k_folder
from faults.place import tiny_model
from PIL import Image
from wandb_server import synced

from segquant.base.hub import weights_sha256
from segquant.evaluation.counts import read_counts
from segquant.warm import SOCKET

METHODS = ("float32", "float8_dynamic", "int4", "int2", "int2_qat", "int8_static", "int4_static")
LAYERS = "stages/dvc.yaml:layers"
ALWAYS = {LAYERS, *(f"stages/dvc.yaml:{name}" for name in ("baseline", "data_source", "probe_hardware"))}  # every run


def done_methods():
    return [name for name in METHODS if name != "float8_dynamic"]


def results(folder):
    """Every file that has to be the same bytes after `dvc repro --force`."""
    patterns = ("metrics/*.json", "metrics/classes/*", "models/quantized/*/*", "models/onnx/*")
    return {str(p.relative_to(folder)): p.read_bytes() for pattern in patterns for p in folder.glob(pattern)}


@pytest.fixture(scope="module")
def clone(tmp_path_factory, warm):
    """A clone of the working tree with fewer methods and images, after its first `dvc repro`."""
    folder = tmp_path_factory.mktemp("clone") / "segquant"
    params = copied(folder, METHODS)
    params["quant"]["methods"]["int2_qat"]["train"] = {
        "steps": 3,
        "crop": 64,
        "batch_size": 2,
        "validate_every": 3,
        "validation_images": 2,
        "workers": 0,
        "lr": 0.5,
    }
    for name in ("int4", "int2", "int2_qat"):  # of the small model's layers
        params["quant"]["methods"][name]["small_layers"]["weights"] = 1000
    params["quant"]["methods"]["int8_static"]["calibration"] = {"images": 4}
    train = {"epochs": 1, "batch_size": 2, "crop": 64, "workers": 0, "validation_images": 2}
    params["quant"]["packed"]["int4_static"] |= {"from": "int4", "calibration": {"images": 4}, "train": train}
    params["model"]["source"] = "models/small"
    tiny_model(folder / "models/small", stages=1)
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    package = folder / "stages/__init__.py"  # benchmarks are forks too: six fresh processes would import for 25 s
    package.write_text(f"from segquant import warm\n\nwarm.FRESH = ''\n{package.read_text()}")
    sh(folder, "git add -A && git commit -qm start")
    output = sh(folder, "env WANDB_MODE=offline dvc repro")
    assert {"prepare_shards", "reference", "select", "report", "complete"} <= ran(output)
    tracked = list((folder / "wandb").glob("offline-run-*"))
    assert len(tracked) == 9  # each evaluation, training and report, none for a method that is unavailable
    sh(folder, "git add -A && git commit -qm results")
    return folder


def test_the_files_others_rely_on(clone):
    float32 = json.loads((clone / "metrics/accuracy/float32.json").read_text())
    assert set(float32) == {
        "algorithm",
        "mean_iou",
        "mean_accuracy",
        "overall_accuracy",
        "agreement",
        "n_images",
        "protocol",
        "size_bytes",
        "compression",
        "quantized_fraction",
        "bits_per_parameter",
    }
    assert float32["n_images"] == 4 and float32["agreement"] == 1.0
    assert float32["compression"] == pytest.approx(1, abs=1e-3)
    int4, int2 = (json.loads((clone / f"metrics/accuracy/{m}.json").read_text()) for m in ("int4", "int2"))
    assert int2["size_bytes"] < int4["size_bytes"] < float32["size_bytes"]
    assert int2["agreement"] < int4["agreement"] < 1
    assert int4["size_bytes"] == (clone / "models/quantized/int4/model.safetensors").stat().st_size
    speed = json.loads((clone / "metrics/speed/int4.json").read_text())
    assert {
        "latency_ms",
        "images_per_second",
        "peak_memory_bytes",
        "load_seconds",
        "engine",
        "batch_size",
        "input_size",
        "device",
    } <= set(speed)
    selected = json.loads((clone / "metrics/selected.json").read_text())
    assert selected == {"method": "int4", **int4}
    classes = (clone / "metrics/classes/int4.csv").read_text().splitlines()
    assert classes[0] == "id,name,pixels,iou,accuracy" and len(classes) > 5
    assert (clone / "metrics/results.csv").read_text().startswith("method,algorithm,engine,mean_iou,loss_points")
    times = json.loads((clone / "metrics/quantize/int4.json").read_text())
    assert times["seconds"] > 0 and times["calibration_images"] == 4
    assert int4["algorithm"] == "gptq" and f"{times['seconds']:.1f}" in (clone / "metrics/results.csv").read_text()
    manifest = json.loads((clone / "models/quantized/int4/quantization.json").read_text())
    assert manifest["quantized_fraction"] > 0.985
    static = json.loads((clone / "metrics/accuracy/int8_static.json").read_text())
    assert (static["engine"], static["algorithm"]) == ("onnxruntime", "pt2e") and 0.9 < static["agreement"] < 1
    assert static["size_bytes"] == (clone / "models/quantized/int8_static/model.onnx").stat().st_size < 4_400_000
    timed = json.loads((clone / "metrics/speed/int8_static.json").read_text())
    assert timed["engine"] == "onnxruntime" and {"engine_version", "relative_to_eager"} <= timed.keys()
    packed = json.loads((clone / "metrics/accuracy/int4_static.json").read_text())
    assert (packed["engine"], packed["algorithm"]) == ("onnxruntime", "gptq+pt2e") and 0.9 < packed["agreement"] < 1
    assert packed["size_bytes"] < 0.75 * static["size_bytes"] and packed["quantized_fraction"] > 0.985
    html = (clone / "metrics/report/index.html").read_text()
    assert all(m in html for m in METHODS)
    trained = json.loads((clone / "metrics/accuracy/int2_qat.json").read_text())
    assert trained["algorithm"] == "qat" and trained["size_bytes"] == int2["size_bytes"]
    assert trained["agreement"] != int2["agreement"] and "What training did: int2_qat" in html
    assert not list((clone / "models/checkpoints").iterdir())
    log = (clone / "logs/evaluate@int4.log").read_text()
    assert "stages.evaluate --method int4" in log and "torchao " in log and "protocol: fixed-64x64-v1" in log


@needs_browser
def test_a_browser_shows_every_method_on_the_report_at_two_widths(clone, tmp_path):
    page = clone / "metrics/report/index.html"
    for width in (1280, 500):
        pixels = shot(page, tmp_path / f"{width}.png", width, 6000)
        assert pixels.shape == (6000, width, 3) and min(colours(pixels)) > 8
    found, done = probed(page, tmp_path, 500), done_methods()
    assert int(found["width"]) <= int(found["window"])
    assert found["rows"].split() == [*done, "float8_dynamic"]
    assert found["choices"].split() == ["photo", "truth", *done]
    assert sorted(found["plots"].split()) == sorted(2 * done)


def test_a_method_this_machine_cannot_run_is_reported_with_the_reason(clone):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine may run float8_dynamic")
    metrics = json.loads((clone / "metrics/accuracy/float8_dynamic.json").read_text())
    assert "8.9" in metrics["unavailable"] and len(metrics) == 1
    assert "float8_dynamic is unavailable" in sh(clone, "segquant report")


def test_wandb_sync_brings_later_what_the_metrics_say(clone):
    runs = {(one.run["jobType"], one.run["displayName"]): one for one in synced(clone)}
    done = done_methods()
    assert set(runs) == {("evaluate", name) for name in done} | {
        ("train", "int2_qat"),
        ("train", "int4_static"),
        ("report", "report"),
    }
    metrics = {name: json.loads((clone / f"metrics/accuracy/{name}.json").read_text()) for name in done}
    report = runs["report", "report"]
    for name in done:
        assert metrics[name].items() <= runs["evaluate", name].summary.items()
        assert report.summary[f"{name}/mean_iou"] == pytest.approx(100 * metrics[name]["mean_iou"])
        assert report.summary[f"{name}/size_mb"] == pytest.approx(metrics[name]["size_bytes"] / 1e6)
    models = {
        one["artifactCollectionName"]: json.loads(one["metadata"])
        for one in report.artifacts
        if one["artifactTypeName"] == "model"
    }
    assert set(models) == {f"segquant-{name}" for name in done}
    weights = clone / "models/quantized/int4/model.safetensors"
    told = models["segquant-int4"]["files"]["model.safetensors"]
    assert told == {"bytes": weights.stat().st_size, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    manifest = json.loads((clone / "data/shards/manifest.json").read_text())
    assert report.config["data"]["fingerprint"] == manifest["fingerprint"]
    assert report.config["git"]["commit"] == sh(clone, "git rev-parse HEAD~1").strip()
    assert {f"evaluate{'_packed' * (name == 'int4_static')}@{name}" for name in done} <= set(report.config["dvc"])
    pictures = [one for key, one in report.summary.items() if key.startswith("pictures/")]
    assert len(pictures) == 2 and all(set(one["masks"]) == {"truth", *done} for one in pictures)


def test_a_second_repro_does_nothing(clone):
    start = time.monotonic()
    output = sh(clone, "dvc repro")
    assert time.monotonic() - start < 15  # 5 on a quiet machine
    assert ran(output) == ALWAYS
    assert sh(clone, "git status --porcelain") == ""


@pytest.mark.slow
def test_a_whole_repro_by_force_gives_identical_bytes(clone):
    before = results(clone)
    sh(clone, "dvc repro --force select")  # all but times and the page that shows them
    assert results(clone) == before


def test_repro_by_force_gives_identical_bytes(clone):
    before = results(clone)
    assert len(before) > 20
    forks = "prepare_shards reference quantize@int2_qat evaluate@int2_qat"
    assert ran(sh(clone, f"dvc repro --force --single-item {forks}")) == set(forks.split())
    plain = "quantize@int4 benchmark@int4 benchmark_packed@int4_static"  # processes of their own instead of forks
    shutil.rmtree(clone / "metrics/speed")
    assert ran(sh(clone, f"env {SOCKET}= dvc repro --force --single-item {plain}")) == set(plain.split())
    assert results(clone) == before
    for name in ("int4", "int4_static"):
        assert json.loads((clone / f"metrics/speed/{name}.json").read_text())["relative_to_float32"]["median"] > 0
    sh(clone, "git reset -q --hard")


def test_another_method_selected_rebuilds_nothing_else_and_shows_in_the_diff(clone):
    start = time.monotonic()
    output = sh(clone, "dvc exp run -n two -S quant.method=int2")
    assert time.monotonic() - start < 30  # 15 on a quiet machine
    assert ran(output) <= ALWAYS | {"select", "complete"}
    assert json.loads((clone / "metrics/selected.json").read_text())["method"] == "int2"
    diff = json.loads(sh(clone, "dvc metrics diff HEAD two --json"))
    changed = diff["metrics/selected.json"]
    assert changed["size_bytes"]["diff"] < 0
    assert set(diff) == {"metrics/selected.json"}
    both = _drawn(clone, "dvc plots diff HEAD --json --targets metrics/confusion.csv metrics/results.csv")
    assert ">workspace</text>" in both["metrics/confusion.csv"] and ">HEAD</text>" in both["metrics/confusion.csv"]
    shares = list(csv.DictReader((clone / "metrics/confusion.csv").open()))
    counts = read_counts(clone / "metrics/predictions/int2/confusion.parquet")
    matrix, at = counts.confusion(), [*counts.classes, "none of them"].index
    for row in shares:
        label = matrix[at(row["label"])]
        assert float(row["percent"]) == pytest.approx(100 * label[at(row["prediction"])] / label.sum(), abs=0.005)
    artifacts = json.loads(sh(clone, f"{sys.executable} -c '{SHOW_ARTIFACTS}'"))
    assert artifacts["selected"] == "models/quantized/int2" and artifacts["baseline"] == "models/baseline"
    table = json.loads(sh(clone, "dvc exp show --json"))[0]["data"]
    assert table["metrics"]["metrics/selected.json"]["data"]["method"] == "int2"
    assert table["params"]["params.yaml"]["data"]["quant"]["method"] == "int2"
    sh(clone, "git reset -q --hard")  # what `select` writes is in git


def test_the_report_shows_the_sensitivity_of_this_model_data_and_protocol_only(clone):
    told = json.loads((ROOT / "metrics/sensitivity.json").read_text())
    page = clone / "metrics/report/index.html"
    assert "What each layer costs" not in page.read_text()
    told |= {"protocol": "fixed-64x64-v1"}  # of other data
    (clone / "metrics/sensitivity.json").write_text(json.dumps(told))
    paths = "--sensitivity metrics/sensitivity.json --baseline models/baseline --shards data/shards"
    sh(clone, f"python -m stages.layers {paths} --output other.json")
    assert json.loads((clone / "other.json").read_text()) == {}
    manifest = json.loads((clone / "data/shards/manifest.json").read_text())
    told |= {"data": manifest["fingerprint"], "model": weights_sha256(clone / "models/small")}
    (clone / "metrics/sensitivity.json").write_text(json.dumps(told))
    assert ran(sh(clone, "dvc repro")) == ALWAYS | {"report", "complete"}
    assert "What each layer costs" in page.read_text()
    sh(clone, "git reset -q --hard && git clean -fdq && dvc checkout -q")


def _drawn(clone, command):
    """The plots of a dvc command: {id: SVG}, drawn by Vega."""
    plots = json.loads(sh(clone, f"{command} 2>/dev/null"))  # it warns of sensitivity.csv, which this clone has not
    plots = plots.get("data", plots)
    return {name: vl_convert.vegalite_to_svg(found[0]["content"]) for name, found in plots.items() if found}


def test_the_projects_plots_are_drawn(clone):
    done = done_methods()
    svg = _drawn(clone, "dvc plots show --json")
    for name in ("metrics/results.csv", "accuracy against latency", "metrics/class_loss.csv"):
        for method in done:
            assert f">{method}</text>" in svg[name], (name, method)
    assert "Pareto front" in svg["metrics/results.csv"] and "size, MB" in svg["metrics/results.csv"]
    labels = (clone / "metrics/classes/int4.csv").read_text().splitlines()[1:]
    for name in ("metrics/class_loss.csv", "metrics/confusion.csv"):
        assert all(f">{line.split(',')[1]}</text>" in svg[name] for line in labels if int(line.split(",")[2]))


SHOW_ARTIFACTS = (
    "import json; from dvc.repo import Repo; "
    'print(json.dumps({k: v.path for k, v in Repo().artifacts.read()["dvc.yaml"].items()}))'
)


def test_a_recipe_changed_and_one_added_rebuild_their_own_lanes_only_and_a_review_tells_of_them(clone):
    sh(clone, "git checkout -q -b change")
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["quant"]["methods"]["int4"]["group_size"] = 16
    params["quant"]["methods"]["int2_g8"] = {"weights": "int2", "group_size": 8, "algorithm": "affine"}  # and no code
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    output = sh(clone, "make review STAMP=Makefile BASE=main")  # as the workflow does, in this environment
    assert ran(output) == ALWAYS | {
        f"{lane}@{method}" for lane in ("quantize", "evaluate", "benchmark") for method in ("int4", "int2_g8")
    } | {f"{lane}@int4_static" for lane in ("pack", "evaluate_packed", "benchmark_packed")} | {"select", "report"}
    assert "int2_g8" in (clone / "metrics/results.csv").read_text()
    review, lines = (clone / "review.md").read_text(), []
    for method in ("int4", "int4_static"):
        path = f"metrics/accuracy/{method}.json"
        old, new = (json.loads(text) for text in (sh(clone, f"git show main:{path}"), (clone / path).read_text()))
        change = round(100 * (new["mean_iou"] - old["mean_iou"]), 2)  # on four images it may be nothing
        lines += [f"- {method}: mean IoU {change:+.2f} points"] if change else []
    assert lines == [line for line in review.splitlines() if "mean IoU +" in line or "mean IoU -" in line]
    assert "- int2_g8 is new.\n" in review
    assert re.search(r"\| params.yaml \| quant.methods.int4.group_size +\| 32 +\| 16 +\|", review)
    assert "| metrics/accuracy/int4.json" in review and "| metrics/accuracy/int2.json" not in review
    assert review.count("```mermaid") == 2 and all(review.count(f'"{name}": [') == 2 for name in done_methods())
    sh(clone, "git checkout -q -b better && git checkout -q main -- metrics")
    path = clone / "metrics/accuracy/int4.json"
    new = json.loads(path.read_text())
    path.write_text(json.dumps({**new, "mean_iou": new["mean_iou"] + 0.02}))
    sh(clone, "git commit -qam better && dvc checkout -q")
    path.write_text(json.dumps(new))
    output = sh(clone, "segquant review --base better --output review.md", code=3)
    assert "A method lost more than 0.5 points of mean IoU against `better`" in output
    assert "- int4: mean IoU -2.00 points" in (clone / "review.md").read_text()
    assert "error: 'nowhere' is no revision" in sh(clone, "segquant review --base nowhere", code=2)
    sh(clone, "git reset -q --hard && git checkout -q main && git branch -qD change better")
    sh(clone, "git clean -qfdx metrics && dvc checkout -q")


def changed_rooms(clone):
    """(stage, room of src/segquant) for every room that DVC takes for changed."""
    status = json.loads(sh(clone, "dvc status --json 2>/dev/null"))
    changes = {
        (stage, path)
        for stage, found in status.items()
        for change in found
        if isinstance(change, dict)
        for path in change.get("changed deps", {})
    }
    return {(stage, path) for stage, path in changes if path.startswith("src/")}


def test_what_python_and_editors_write_dirties_no_stage_and_a_change_of_the_report_no_lane(clone):
    before = changed_rooms(clone)  # of stages that never ran
    for room in ("base", "quant", "evaluation", "report"):
        folder = clone / "src/segquant" / room
        (folder / "__pycache__").mkdir(exist_ok=True)
        for name in ("__pycache__/x.cpython-311.pyc", ".x.py.swp", "x.py~", "#x.py#", ".#x.py", ".DS_Store"):
            (folder / name).write_text("x")
    assert changed_rooms(clone) == before
    for name in ("src/segquant/report/advice.py", "tests/conftest.py", "docs/data.md"):
        with open(clone / name, "a") as file:
            file.write("# another line\n")
    changed = {stage for stage, _ in changed_rooms(clone) - before}
    assert "report" in changed and changed <= {"report", "complete", "metrics/dvc.yaml:sensitivity"}
    sh(clone, "git checkout -q src tests docs && git clean -qfdx src")


def test_the_same_model_from_elsewhere_and_what_only_says_how_fast_an_evaluation_goes_rebuild_nothing(clone, tmp_path):
    shutil.copytree(clone / "models/small", tmp_path / "copy")
    changes = f"-S model.source={tmp_path / 'copy'} -S eval.workers=1 -S eval.max_gpu_memory_gb=6"
    assert ran(sh(clone, f"dvc exp run {changes}")) == ALWAYS
    sh(clone, "git reset -q --hard")


def test_a_change_inside_the_data_is_seen_and_nothing_changed_costs_nothing(clone, tmp_path):
    data = ade20k_folder(ade20k_folder(tmp_path / "set", "training", 3), "validation", 2)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["data"] |= {"source": str(data), "limit": None}
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    seen = []
    for change in (None, "more", None, "label"):
        if change == "more":
            ade20k_folder(data, "validation", 3)
        if change == "label":
            label = sorted((data / "annotations/training").iterdir())[0]
            Image.fromarray(np.full((30, 40), 7, np.uint8)).save(label)
        output = sh(clone, "dvc repro prepare_shards")
        manifest = json.loads((clone / "data/shards/manifest.json").read_text())
        assert ran(output) == ALWAYS - {LAYERS} | ({"prepare_shards"} if change or not seen else set())
        seen.append((manifest["splits"]["validation"]["images"], manifest["fingerprint"]))
    assert [images for images, _ in seen] == [2, 3, 3, 3]
    assert len({fingerprint for _, fingerprint in seen}) == 3
    sh(clone, "git reset -q --hard && dvc checkout -q")


def test_shards_and_artifacts_come_back_from_a_remote(clone, tmp_path):
    """As docs/data.md has it, with a folder for a remote."""
    before = results(clone) | {str(p): p.read_bytes() for p in (clone / "data/shards").iterdir()}
    sh(clone, f"dvc remote add -d store {tmp_path / 'store'} && dvc push -q && mv .dvc/cache {tmp_path / 'cache'}")
    shutil.rmtree(clone / "data/shards")
    shutil.rmtree(clone / "models/quantized")
    sh(clone, "dvc pull -q")
    assert results(clone) | {str(p): p.read_bytes() for p in (clone / "data/shards").iterdir()} == before
    assert ran(sh(clone, "dvc repro")) == ALWAYS
    sh(clone, "git reset -q --hard")


@pytest.mark.slow
def test_the_launcher_of_params_starts_the_evaluation(clone):
    before = results(clone)
    output = sh(clone, "dvc exp run evaluate@int4 -S 'eval.launcher=torchrun --standalone --nproc-per-node 2'")
    assert "torchrun --standalone --nproc-per-node 2 -m stages.evaluate" in output
    assert {"reference", "evaluate@int4"} <= ran(output) and "quantize@int4" not in ran(output)
    assert results(clone) == before
    sh(clone, "git reset -q --hard && dvc checkout -q")


def test_a_method_that_fails_stops_no_other_and_the_last_stage_says_so(clone):
    """NNCF learns only when it has the graph that it has no such node."""
    params = yaml.safe_load((clone / "params.yaml").read_text())
    recipe = {"engine": "openvino", "weights": "int8", "algorithm": "nncf", "ignored_types": ["Nope"]}
    params["quant"]["methods"]["bad"] = recipe | {"calibration": {"images": 2}}
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    output = sh(clone, "dvc repro", code=255)
    lanes = {f"{lane}@bad" for lane in ("quantize", "evaluate", "benchmark")}
    assert {*lanes, "report", "complete"} <= ran(output) <= ALWAYS | {*lanes, "report", "select", "complete"}
    reason = "ignored_types: the model has no node of type 'Nope'"
    assert "exited with 4" in output and "Traceback" not in output and "error: bad failed" in output
    for name in ("quantize", "accuracy", "speed"):
        assert json.loads((clone / f"metrics/{name}/bad.json").read_text())["failed"].startswith(reason)
    assert reason.replace("'", "&#39;") in (clone / "metrics/report/index.html").read_text()
    assert "Traceback" in (clone / "logs/quantize@bad.log").read_text()
    assert ran(sh(clone, "dvc repro", code=255)) == ALWAYS | {"complete"}
    assert lanes <= ran(sh(clone, "dvc repro --force --downstream quantize@bad", code=255))
    assert "bad failed: " in sh(clone, "segquant report", code=4)
    sh(clone, "git reset -q --hard && git clean -qfdx metrics && dvc checkout -q")


def test_bad_recipes_end_in_one_line_each(clone):
    bad = ("bad={weights: int4, layers: [head]}", "worse={weights: int4, group_size: 11}")
    changes = " ".join(f"-S '+quant.methods.{recipe}'" for recipe in bad)
    output = sh(clone, f"dvc exp run --keep-going {changes}", code=None)
    assert output.count("error: layers has 'head', which matches none of the 12") == 1
    assert output.count("error: group_size 11 divides the inputs of no layer") == 1
    assert "Traceback" not in output and output.count("exited with 2") == 2
    sh(clone, "git reset -q --hard")
