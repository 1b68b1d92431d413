"""The command as a user runs it: in a process, with its output and exit code."""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, ade20k_folder
from forked import errors, segquant
from PIL import Image

from segquant import models
from segquant.base.config import Auto, Calibration, Recipe
from segquant.base.errors import ModelError
from segquant.commands import sensitivity
from segquant.quant import artifacts
from segquant.quant.build import build
from segquant.quant.recipes import unavailable


def test_help_names_every_command_with_what_it_does_and_every_exit_code():
    done = segquant("--help")
    assert done.returncode == 0 and "\x1b" not in done.stdout
    for command in (
        "run",
        "predict",
        "methods",
        "compare",
        "report",
        "review",
        "sensitivity",
        "export",
        "pt2e",
        "evaluate",
        "fetch-data",
    ):
        line = next(line for line in done.stdout.splitlines() if re.match(rf" +{command} ", line))
        assert len(line.split()) > 3
    assert "exit codes:" in done.stdout and "130  interrupted" in done.stdout
    compare = segquant("compare", "--help").stdout
    assert "--metrics" in compare and "--json" in compare
    missing = segquant("run")
    assert missing.returncode == 2 and "--model" in missing.stderr and "Traceback" not in missing.stderr


def test_options_are_written_in_full():
    done = segquant("methods", "--verb")
    assert done.returncode == 2 and "unrecognized arguments: --verb" in done.stderr


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["sensitivity", "--bits", ""], "--bits"),
        (["sensitivity", "--bits="], "--bits"),
        (["run", "--model", "m", "--methods", ""], "--methods"),
        (["predict", ""], "an argument"),
    ],
)
def test_a_word_that_is_empty_as_of_an_unset_variable_is_one_line(words, name):
    done = segquant(*words)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {name} is empty: give a value, or leave it out"]


def imported(code, *arguments):
    """What a fresh Python that runs `code` prints, and the modules that it has imported in the end."""
    listing = "import atexit, sys; atexit.register(lambda: print(*sys.modules)); "
    command = [sys.executable, "-c", listing + code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    printed, modules = done.stdout.rstrip().rsplit("\n", 1)
    return printed, set(modules.split())


def test_help_imports_nothing_heavy():
    """No command does: they all have added their options when any help is printed."""
    for arguments in (("--help",), ("methods", "--help"), ("export", "onnx", "--help")):
        printed, modules = imported("from segquant.cli import cli; cli()", *arguments)
        assert "--help" in printed and modules.isdisjoint({"torch", "transformers", "numpy", "pyarrow", "PIL"})


def test_a_report_is_made_without_torch():
    printed, modules = imported("from segquant.cli import cli; cli()", "report")
    assert "int4" in printed and "segquant.report.results" in modules and "torch" not in modules
    printed, modules = imported("import stages.complete, stages.report, stages.select; print('imported')")
    assert printed == "imported" and "stages.report" in modules and "torch" not in modules


def test_methods_lists_every_method_and_says_what_cannot_run():
    done = segquant("methods", "--json")
    listing = json.loads(done.stdout)
    assert {"float32", "bfloat16", "float8", "float8_dynamic", "int8", "int8_dynamic", "int4", "int2", "auto"} <= set(
        listing
    )
    assert listing["int8"]["unavailable"] is None
    plain = segquant("methods").stdout
    for name in listing:
        assert name in plain


def test_run_on_a_labelled_folder(tiny_folder, quick, tmp_path):
    """One colour; the left half has id 0 and the right half id 10 of CamVid's eleven, and one pixel has no label."""
    for folder, image in (("val", Image.new("RGB", (60, 40), (90, 120, 40))), ("valannot", Image.new("L", (60, 40)))):
        (tmp_path / "data" / folder).mkdir(parents=True)
        if folder == "valannot":
            image.paste(10, (30, 0, 60, 40))
            image.putpixel((0, 0), 11)
        image.save(tmp_path / "data" / folder / "a.png")
    (tmp_path / "map.yaml").write_text("map: {" + ", ".join(f"{i}: {i % 11}" for i in range(150)) + "}")
    done = segquant(
        "run",
        "--params",
        quick,
        "--model",
        tiny_folder,
        "--data",
        tmp_path / "data",
        "--split",
        "val",
        "--label-map",
        tmp_path / "map.yaml",
        "--protocol",
        "fixed-64x96-v1",
        "--methods",
        "float32,int4,float8_dynamic",
        "--train-split",
        "val",
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results) == ["float32", "int4", "float8_dynamic"]
    float32 = results["float32"]
    assert "loss_interval" not in float32  # there is one image
    assert float32["agreement"] == 1.0 and float32["n_images"] == 1 and float32["protocol"] == "fixed-64x96-v1"
    assert results["int4"]["algorithm"] == "gptq" and results["int4"]["quantize"]["calibration_images"] == 1
    assert {"p50", "p90", "n"} == set(float32["speed"]["latency_ms"])
    assert "unavailable" in results["float8_dynamic"] or "mean_iou" in results["float8_dynamic"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["splits"]["val"]["class_pixels"] == {"0": 1199, "10": 1200}
    assert manifest["splits"]["val"]["ignored_pixels"] == 1
    assert (tmp_path / "out" / "artifacts" / "int4" / "model.safetensors").is_file()
    classes = (tmp_path / "out" / "classes" / "int4.csv").read_text().splitlines()
    assert classes[0] == "id,name,pixels,iou,accuracy" and classes[1].startswith("0,Sky,1199,")
    float8_classes = tmp_path / "out" / "classes" / "float8_dynamic.csv"
    assert float8_classes.exists() == ("mean_iou" in results["float8_dynamic"])
    assert "fixed-64x96-v1, 1 images" in done.stdout
    assert re.search("^Smallest: (int4|float32)", done.stdout, re.M)
    compared = segquant("compare", "float32", "int4", "--metrics", tmp_path / "out", "--json")
    assert json.loads(compared.stdout)["n_images"] == 1
    assert "\x1b" not in done.stdout + done.stderr  # no colours, no moving bars when piped
    assert "\r" not in done.stderr


def test_run_trains_on_photographs_without_labels(tiny_folder, quick, tmp_path):
    ade20k_folder(tmp_path / "data", "validation", 2)
    ade20k_folder(tmp_path / "other", "validation", 3)
    photos = tmp_path / "other" / "images" / "validation"
    (tmp_path / "map.yaml").write_text("map: {" + ", ".join(f"{i}: {149 - i}" for i in range(150)) + "}")
    params = yaml.safe_load(quick.read_text())
    train = {"steps": 2, "batch_size": 2, "crop": 32, "validate_every": 1, "workers": 0}
    recipe = {"weights": "int2", "group_size": 16, "algorithm": "gptq", "calibration": {"images": 2}, "train": train}
    params["quant"]["methods"]["reference"] = recipe
    budget = {"weights": "auto", "points": 99, "group_sizes": [16], "calibration": {"images": 2}}
    params["quant"]["methods"]["by_loss"] = budget | {"layers": ["decode_head.*"]}
    quick.write_text(yaml.safe_dump(params, sort_keys=False))
    done = segquant(
        "run",
        "--params",
        quick,
        "--model",
        tiny_folder,
        "--data",
        tmp_path / "data",
        "--split",
        "validation",
        "--protocol",
        "fixed-64x64-v1",
        "--methods",
        "reference,by_loss",
        "--train-data",
        photos,
        "--label-map",
        tmp_path / "map.yaml",
        "--output",
        tmp_path / "out",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["reference"]["algorithm"] == "qat"
    assert "train: 100%" in done.stderr and "mIoU=" in done.stderr
    allocation = json.loads((tmp_path / "out/artifacts/by_loss/quantization.json").read_text())["allocation"]
    assert allocation["measure"] == "agreement with float32" and len(allocation["tried"]) == 7
    assert all(0 < entry["points"] < 100 for entry in allocation["tried"])
    assert "Points are percent of the logits' places whose class is not float32's here" in done.stderr
    assert not (tmp_path / "out" / "partial").exists() and not (tmp_path / "wandb").exists()


def test_two_data_sets_are_scored_apart_and_listed_side_by_side(tiny_folder, quick, tmp_path):
    """As in separate runs; the second data set's class ids differ from the model's."""
    ade20k_folder(tmp_path / "roads", "validation", 2)
    ade20k_folder(tmp_path / "rooms", "validation", 3)
    (tmp_path / "map.yaml").write_text("map: {" + ", ".join(f"{i}: {149 - i}" for i in range(150)) + "}")
    common = [
        "run",
        "--params",
        quick,
        "--model",
        tiny_folder,
        "--split",
        "validation",
        "--protocol",
        "fixed-64x64-v1",
        "--methods",
        "float32,float8_dynamic",
    ]
    roads, rooms = ["--data", tmp_path / "roads"], ["--data", tmp_path / "rooms"]
    maps = ["--label-map", "none", "--label-map", tmp_path / "map.yaml"]
    done = segquant(*common, *roads, *rooms, *maps, "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    together = json.loads((tmp_path / "out" / "results.json").read_text())
    alone = {}
    for name, options in (("roads", roads), ("rooms", [*rooms, *maps[2:]])):
        segquant(*common, *options, "--output", tmp_path / "alone" / name)
        alone[name] = json.loads((tmp_path / "alone" / name / "results.json").read_text())
        assert json.loads((tmp_path / "out" / "data" / name / "manifest.json").read_text())["classes"][0] == "wall"
    for data_sets in (together, alone):
        for results in data_sets.values():
            for metrics in results.values():
                metrics.pop("quantize", None), metrics.pop("speed", None)
    assert together == alone and together["roads"]["float32"] != together["rooms"]["float32"]
    heading = next(line for line in done.stdout.splitlines() if "roads" in line)
    assert heading.count("roads") == heading.count("rooms") == 3
    assert "roads: fixed-64x64-v1, 2 images" in done.stdout and "rooms: fixed-64x64-v1, 3 images" in done.stdout
    reason = unavailable(Recipe("float8", activations="float8"), models.device())  # None on a GPU that has float8
    assert together["roads"]["float8_dynamic"].get("unavailable") == reason
    assert done.stdout.count("float8_dynamic is unavailable") == (reason is not None)


def test_two_data_sets_of_one_name_and_a_third_label_map_are_refused(tiny_folder, tmp_path):
    ade20k_folder(tmp_path / "set", "validation", 1)
    ade20k_folder(tmp_path / "b" / "set", "validation", 1)
    both = ["--data", tmp_path / "set", "--data", tmp_path / "b" / "set"]
    for options, message in (
        (both, "two data sets are called 'set': rename a folder"),
        ([*both, *["--label-map", "none"] * 3], "there are 3 label maps for 2 data sets: give one, or one for each"),
    ):
        done = segquant("run", "--model", tiny_folder, "--split", "validation", "--output", tmp_path / "out", *options)
        assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and done.stderr.count("error: ") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("sets", [["good", "broken"], ["broken"]])
def test_a_broken_data_set_leaves_nothing_of_a_run(sets, tiny_folder, tmp_path):
    for name in sets:
        ade20k_folder(tmp_path / name, "validation", 2)
    (tmp_path / "broken/images/validation/ADE_validation_00000001.jpg").write_bytes(b"x")
    data = [part for name in sets for part in ("--data", tmp_path / name)]
    options = ["--split", "validation", "--methods", "float32", "--output", tmp_path / "out", *data]
    done = segquant("run", "--model", tiny_folder, *options)
    assert done.returncode == 2 and "ADE_validation_00000001" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_no_network_is_one_line(tiny_folder, tmp_path):
    """The hub's real client, at an address where nothing listens."""
    options = ["--model", tiny_folder, "--data", "owner/name", "--split", "val", "--output", tmp_path / "out"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "segquant", "run", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 2 and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "'owner/name' is nothing here and the hub gives none: " in done.stderr and "refused" in done.stderr


def test_fetch_data_lists_the_data_sets_that_it_knows(tmp_path):
    done = segquant("fetch-data", "coco", "--output", tmp_path)
    assert done.returncode == 2 and done.stderr == "error: data set 'coco' is unknown: choose from ade20k\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--methods": "int8,nope"}, "method 'nope' is unknown: choose from float32, bfloat16"),
        ({"--model": "nowhere"}, "model 'nowhere' is not there: give a folder, a hub id"),
        ({"--data": "nowhere"}, "data source 'nowhere' is not there: give 'scenes', a labelled folder"),
        ({"--split": "test"}, "scenes has no split 'test'"),
        ({"--protocol": "fixed-1x1-v1"}, "protocol 'fixed-1x1-v1' is unknown"),
        ({"--limit": "0"}, "--limit must be at least 1"),
        (
            {"--train-split": "test", "--methods": "int4"},
            "it is needed to calibrate int4: see --train-data and --train-split",
        ),
        ({"--model": "https://localhost/model.safetensors"}, "needs model.sha256"),
        ({"--label-map": "nowhere.yaml"}, "label map nowhere.yaml does not exist"),
        ({"--params": "nowhere.yaml"}, "nowhere.yaml does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(change, message, tiny_folder, tmp_path):
    options = {
        "--model": tiny_folder,
        "--data": "scenes",
        "--split": "validation",
        "--limit": "1",
        "--output": tmp_path / "out",
    }
    done = segquant("run", *[x for pair in {**options, **change}.items() for x in pair])
    assert done.returncode == 2
    assert len(errors(done)) == 1 and errors(done)[0].startswith("error: ") and message in errors(done)[0]
    assert not (tmp_path / "out" / "results.json").exists()


def test_sensitivity_writes_a_table_and_a_plot(tiny_folder, tmp_path):
    options = [
        "--model",
        tiny_folder,
        "--data",
        "scenes",
        "--split",
        "validation",
        "--limit",
        1,
        "--output",
        tmp_path / "o",
    ]
    done = segquant("sensitivity", *options, "--bits", "2", "--protocol", "fixed-64x64-v1")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "o" / "sensitivity.csv").read_text().splitlines()
    assert lines[0] == "module,parameters,bits,mean_iou_loss,snr_db" and len(lines) == 20
    assert (tmp_path / "o" / "sensitivity.svg").read_text().startswith("<svg")
    assert "The ten worst of 19" in done.stdout
    assert "bits / group size" not in (tmp_path / "o" / "sensitivity.svg").read_text()
    for bits, message in (
        ("2,5", "sensitivity.bits[1] '5' is unknown"),
        ("two", "sensitivity.bits[0] 'two' is unknown"),
    ):
        done = segquant("sensitivity", *options, "--bits", bits)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_signal_as_strong_as_its_noise_is_not_without_noise(monkeypatch, capsys):
    rows = [{"module": "a", "bits": 2, "mean_iou_loss": 1.0, "snr_db": snr} for snr in (0.0, None)]
    monkeypatch.setattr(sensitivity, "_layers", lambda *_, **_options: rows)
    parser = argparse.ArgumentParser()
    sensitivity.options(parser)
    options = {"params": ROOT / "params.yaml", "json": False}
    arguments = ["--model", "m", "--data", "d", "--split", "s", "--output", "o"]
    sensitivity.main(parser.parse_args(arguments, argparse.Namespace(**options)))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["0.0", "inf"]


def test_the_plot_of_sensitivity_shows_what_weights_auto_gave(tiny, tiny_folder, tmp_path):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    half = sum(tensor.nbytes for tensor in tiny.state_dict().values()) / 2e6
    recipe = Auto(weights="auto", megabytes=half, group_sizes=(16,), calibration=Calibration(2))
    build(tiny_folder, recipe, tmp_path / "by_size", torch.device("cpu"), images)
    build(tiny_folder, Recipe("int8"), tmp_path / "int8", torch.device("cpu"))
    data = ("--data", "scenes", "--split", "validation", "--limit", 1, "--bits", "2", "--protocol", "fixed-64x64-v1")
    options = ("sensitivity", *data, "--output", tmp_path / "o", "--artifact")
    done = segquant(*options, tmp_path / "int8", "--model", tiny_folder)
    assert done.returncode == 2 and done.stderr == (
        f"error: {tmp_path / 'int8'} is not of weights auto: give an artifact that has an allocation\n"
    )
    done = segquant(*options, tmp_path / "by_size", "--model", ROOT / "models/scenes-b0")
    assert done.returncode == 2 and "scenes-b0 3,752,694: give one made of it" in done.stderr
    assert not (tmp_path / "o").exists()
    done = segquant(*options, tmp_path / "by_size", "--model", tiny_folder)
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "o" / "sensitivity.svg").read_text()
    assert "bits / group size" in picture and "by_size" in picture and "8 / 32" in picture


def test_an_artifact_of_a_model_of_as_many_parameters_in_other_layers_is_refused(tiny, tiny_folder, monkeypatch):
    count = sum(parameter.numel() for parameter in tiny.parameters())
    info = {"parameters": count, "allocation": {"layers": {"decode_head.classifier": {}, "stem": {}}}}
    monkeypatch.setattr(artifacts, "describe_artifact", lambda _: info)
    monkeypatch.setattr(artifacts, "check_present", lambda *_: None)
    with pytest.raises(ModelError, match="^a has the layer stem, and .* has not: give one made of it$"):
        sensitivity._allocated(Path("a"), tiny_folder)
    del info["allocation"]["layers"]["stem"]
    assert sensitivity._allocated(Path("a"), tiny_folder) == {"a": info["allocation"]["layers"]}


def test_export_transformers_prints_the_size_or_the_reason(tiny_folder, tmp_path):
    for layers, code, message in (("linear", 0, "MB of weights"), ("all", 2, "layers: linear")):
        build(tiny_folder, Recipe("int8", layers=layers), tmp_path / layers, torch.device("cpu"))
        arguments = ("--artifact", tmp_path / layers, "--output", tmp_path / f"out-{layers}")
        done = segquant("export", "transformers", *arguments)
        assert done.returncode == code and message in done.stdout + done.stderr
        assert (tmp_path / f"out-{layers}").exists() == (code == 0)


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m segquant report --json | head -c 10 > /dev/null; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and done.returncode in (0, 141)  # 0 if the whole output fitted into the pipe


def test_report_without_results_says_what_to_do(tmp_path):
    done = segquant("report", "--metrics", tmp_path)
    assert done.returncode == 2
    assert "holds no results: run `dvc repro` first" in done.stderr
