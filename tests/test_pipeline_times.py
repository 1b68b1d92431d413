"""The table of benchmarks/pipeline.py."""

import subprocess
import sys
from datetime import datetime

import pytest
from conftest import ROOT
from pipeline import Stage, stages, table

START = datetime(2026, 1, 2, 3, 4, 5).timestamp()
LINES = [
    (0, "start"),
    (2, "'data/source.json.dvc' didn't change, skipping"),
    (3, "Running stage 'quantize@int4':"),
    (3, "> python -m stages.quantize"),
    (40, "Running stage 'stages/dvc.yaml:probe':"),
    (41, "Running stage 'quantize@int2':"),
    (61, ""),
]


def log(path, *seconds):
    stamps = (datetime.fromtimestamp(START + second).strftime("%Y-%m-%d %H:%M:%S,%f")[:-3] for second in seconds)
    path.write_text("".join(f"{stamp} INFO segquant: a line\n    2026 and one more\n" for stamp in stamps))


def test_each_stage_has_its_imports_its_work_and_what_dvc_did_after_it(tmp_path):
    log(tmp_path / "quantize@int4.log", 8.5, 20.25, 39)
    log(tmp_path / "quantize@int2.log", -3600, -3500)  # of an earlier run
    rows = list(stages([(START + seconds, text) for seconds, text in LINES], tmp_path))
    assert rows == [
        Stage("before", 0, 0, 3),
        Stage("quantize@int4", 5.5, 30.5, 1),
        Stage("stages/dvc.yaml:probe", 0, 1, 0),
        Stage("quantize@int2", 0, 20, 0),
    ]
    lines = [line.split() for line in table(rows, 61.5).splitlines() if line]
    assert lines[1] == ["all", "(4)", "61.0", "5.5", "51.5", "4.0"]
    assert lines[2] == ["quantize", "(2)", "57.0", "5.5", "50.5", "1.0"]
    assert [line[0] for line in lines[3:-1]] == ["quantize@int4", "quantize@int2", "before", "stages/dvc.yaml:probe"]
    assert lines[-1] == ["whole", "command:", "61.5", "s"]


@pytest.mark.parametrize(("code", "message"), [(0, ""), (3, "ended with code 3: mend that first\n")])
def test_the_command_s_own_output_and_failure_are_shown(code, message, tmp_path):
    command = [sys.executable, "-c", f"print('Running stage'); raise SystemExit({code})"]
    script = [sys.executable, str(ROOT / "benchmarks/pipeline.py"), *command]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    shown = f"error: {' '.join(command)} {message}" if message else ""
    assert done.returncode == (2 if code else 0) and done.stderr == f"Running stage\n{shown}"
    assert ("whole command" in done.stdout) == (not code)


@pytest.mark.parametrize(
    ("line", "written"),
    [
        ("Stage 'models/dvc.yaml:qat@int4_qat' didn't change, skipping", True),
        ("Stage 'quantize@int4' didn't change, skipping", False),
        ("Stage 'stages/dvc.yaml:layers' is cached - skipping run, checking out outputs", False),
    ],
)
def test_seconds_are_written_of_a_whole_run_only(line, written, tmp_path):
    command = [sys.executable, "-c", f"print(\"Running stage 'a':\"); print({line!r})"]
    script = [sys.executable, str(ROOT / "benchmarks/pipeline.py"), "--write", "seconds.json", *command]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if written else 2) and (tmp_path / "seconds.json").is_file() == written
    assert written or "run this in an empty clone without dvc.lock" in done.stderr
