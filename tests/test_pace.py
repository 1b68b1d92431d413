"""What `make repro` says first, and what each stage says as it starts."""

import csv
import json
import os
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from segquant.pace import words

SECONDS = {"a": 30.0, "b": 60.0, "c": 600.0, "d": 60.0}


@pytest.mark.parametrize(
    ("earlier", "name", "now", "line"),
    [
        ({}, "a", 1000, "stage 1 of 4, about 12 minutes left"),
        ({"a": 1000}, "b", 1060, "stage 2 of 4, about 16 minutes left"),  # at half the pace, as far as it is known
        ({"a": 1000, "b": 1060}, "c", 1180, "stage 3 of 4, about 18 minutes left"),
        ({"a": 1000}, "c", 1018, "stage 3 of 4, about 10 minutes left"),  # faster, and b was skipped
        ({"a": 1000, "b": 1001, "c": 1002}, "d", 1003, "stage 4 of 4, less than two minutes left"),  # killed before
        ({"a": 1000, "c": 1018}, "d", 1645, "stage 4 of 4, less than two minutes left"),
    ],
)
def test_the_line_says_which_stage_it_is_and_how_long_the_rest_takes(earlier, name, now, line):
    assert words(SECONDS, earlier, name, now) == line


def stage(folder, **environment):
    environment = {**os.environ, "SEGQUANT_WARM": str(folder / "socket"), **environment}
    command = [sys.executable, "-m", "stages.one"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "ran\n"
    return done.stderr


def test_each_stage_of_a_run_says_its_line_and_others_none(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").write_text((ROOT / "stages/__init__.py").read_text())
    (tmp_path / "stages/one.py").write_text("print('ran')")
    assert stage(tmp_path, DVC_STAGE="b") == ""
    (tmp_path / "stages/seconds.json").write_text(json.dumps(SECONDS))
    assert stage(tmp_path, DVC_STAGE="b") == "stage 2 of 4, about 12 minutes left\n"
    assert stage(tmp_path, DVC_STAGE="quantize@new") == stage(tmp_path) == ""
    assert stage(tmp_path, DVC_STAGE="b", RANK="1") == ""
    assert stage(tmp_path, DVC_STAGE="b", SEGQUANT_WARM="no/such/folder/socket") == ""
    assert stage(tmp_path, DVC_STAGE="d").startswith("stage 4 of 4, less than two minutes left")
    assert [json.loads(line)[0] for line in (tmp_path / "started").read_text().splitlines()] == ["b", "d"]


def test_the_seconds_and_the_locks_are_those_of_the_stages_that_there_are():
    """benchmarks/pipeline.py --write makes the seconds. DVC leaves the lock of a stage that has gone: delete it by hand."""
    seconds = json.loads((ROOT / "stages/seconds.json").read_text())
    quant = yaml.safe_load((ROOT / "params.yaml").read_text())["quant"]
    stages = {f"stages/dvc.yaml:{name}" for name in yaml.safe_load((ROOT / "stages/dvc.yaml").read_text())["stages"]}
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        methods = quant[stage["foreach"][len("${quant.") : -1]] if "foreach" in stage else [""]
        stages |= {f"{name}@{method}" if method else name for method in methods}
    locks = {"": ROOT / "dvc.lock", "stages/dvc.yaml:": ROOT / "stages/dvc.lock"}
    locked = {f"{start}{name}" for start, lock in locks.items() for name in yaml.safe_load(lock.read_text())["stages"]}
    assert set(seconds) == stages == locked and all(value >= 0 for value in seconds.values())


def test_the_first_words_show_the_results_that_are_there(tmp_path):
    def said(folder):
        command = ["make", "-s", "-f", str(ROOT / "Makefile"), f"PYTHON={sys.executable}", "hello"]
        environment = {**os.environ, "MAKEFLAGS": ""}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout

    with (ROOT / "metrics/results.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file) if row["mean_iou"]}
    lines = said(ROOT).splitlines()
    shown = {line.split()[0]: line.split()[1:] for line in lines if line.split()[0:1] and line.split()[0] in rows}
    keys = ("mean_iou", "loss_points", "agreement", "size_mb", "speedup_eager")
    assert shown == {name: [row[key] for key in keys] for name, row in rows.items()}
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/seconds.json").write_text('{"a": 200, "b": 41}')
    text = "segquant quantizes, scores and times every method, in 2 stages. The first run takes about 4 minutes\n"
    assert said(tmp_path).startswith(text) and "last run" not in said(tmp_path)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics/results.csv").write_text("method,mean_iou,size_mb\nint\x1b[31m8,65.46,3.84\nfloat8,,\n")
    assert "int?[31m8" in said(tmp_path) and "\x1b" not in said(tmp_path) and "float8" not in said(tmp_path)
