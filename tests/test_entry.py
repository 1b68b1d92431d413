"""Where stages and commands log, and the errors that they print."""

import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT

from segquant import cli
from segquant.base.errors import one_line


def _stage(folder, *arguments, **environment):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", **environment}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_log_of_a_stage_holds_command_versions_parameters_and_traceback(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    select = ("stages.select", "--results", "nothing", "--output", "out.json", "--confusion", "out.csv")
    done = _stage(tmp_path, *select, DVC_STAGE="metrics/dvc.yaml:quantize@int4", WANDB_API_KEY="s3cret" * 7)
    assert done.returncode == 2
    assert done.stderr == "error: nothing/int4/metrics.json does not exist\n"  # the traceback is in the log only
    (log,) = (tmp_path / "logs").iterdir()
    text = log.read_text()
    assert log.name == "quantize@int4.log"
    assert "-m stages.select --results nothing" in text
    assert f"torch {metadata.version('torch')}, torchao {metadata.version('torchao')}" in text
    assert "method: int4 # the selected method" in text
    assert "Traceback" in text and "FileNotFoundError" in text
    assert "s3cret" not in text
    _stage(tmp_path, *select)
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"quantize@int4.log", "select.log"}


def test_a_log_holds_the_last_run_and_other_ranks_write_none(tmp_path):
    select = ("stages.select", "--results", "x", "--output", "x", "--confusion", "x")
    for _ in range(2):
        _stage(tmp_path, *select)
    assert (tmp_path / "logs" / "select.log").read_text().count("command:") == 1
    (tmp_path / "logs" / "select.log").unlink()
    _stage(tmp_path, *select, RANK="1")
    assert not list((tmp_path / "logs").iterdir())


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "logs").write_text("no folder")
    done = _stage(tmp_path, "stages.select", "--results", "x", "--output", "x", "--confusion", "x")
    assert done.returncode == 2 and done.stderr == "error: logs: File exists\n"


def test_heavy_imports_print_nothing(tmp_path):
    packages = {"PYTHONWARNINGS": "ignore::SyntaxWarning"}  # of theirs, where an installation has not compiled them
    done = _stage(tmp_path, "segquant", "methods", **packages)  # torch, torchao, transformers
    assert done.returncode == 0 and done.stderr == ""
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_idle_threads_of_pytorch_sleep_soon(given, count):
    """By what the library itself says as it is loaded."""
    known = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    libraries = [*Path(find_spec("torch").origin).parent.glob("lib/libgomp*")]
    if not libraries:
        pytest.skip("this PyTorch brings no libgomp")
    code = f"import segquant, ctypes; ctypes.CDLL({str(libraries[0])!r})"
    environment = {**known, "OMP_DISPLAY_ENV": "VERBOSE", **given}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{count}'" in done.stderr


@pytest.mark.parametrize("triton", [False, True])
def test_a_torch_for_cuda_has_nothing_to_list_as_python_ends(triton):
    """What triton's bindings leave uncollected is a line each: nothing stays frozen where triton is loaded."""
    code = f"import gc, sys; from segquant.base import entry; sys.modules |= {{'triton': sys}} if {triton} else {{}}"
    code += "; entry.run(lambda: None); sys.stdout.write(str(gc.get_freeze_count() > 0))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == str(not triton)


def test_a_fault_of_the_program_is_one_line_and_the_traceback_is_logged(tmp_path):
    (tmp_path / "broken.py").write_text(
        "from segquant.base.entry import run\ndef main():\n    {}['key']\nif __name__ == '__main__':\n    run(main)\n"
    )
    quiet, loud = (_stage(tmp_path, "broken", *more) for more in ((), ("--verbose",)))
    line = "error: a fault of the program, KeyError: 'key': --verbose shows where; please report it\n"
    assert quiet.returncode == loud.returncode == 1 and quiet.stderr == line
    assert "Traceback" in loud.stderr and loud.stderr.endswith(line)


def test_a_value_from_a_file_is_shortened_in_a_message_and_a_path_is_not():
    path = "/".join(["folder"] * 100)
    line = one_line(ValueError(f"{path} names\nthe class {'x' * 10_000}: remove it"), 10_000)
    assert line == f"{path} names the class {'x' * 100}... remove it"


def test_a_full_disk_is_one_line_that_says_what_to_do(tmp_path):
    (tmp_path / "full.py").write_text(
        "from pathlib import Path\nfrom segquant.base.entry import run\n"
        "def main():\n    Path('/dev/full').write_text('x')\n"
        "if __name__ == '__main__':\n    run(main)\n"
    )
    done = _stage(tmp_path, "full")
    assert done.returncode == 2
    assert done.stderr == "error: input or output: No space left on device: free some space, and run it again\n"


def test_ctrl_c_while_the_parser_is_built_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "parser", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(SystemExit) as ended:
        cli.cli()
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_verbose_logs_more(tmp_path):
    quiet, loud = (_stage(tmp_path, "segquant", "report", *more) for more in ((), ("--verbose",)))
    assert quiet.returncode == loud.returncode == 2 and quiet.stderr.count("\n") == 1
    assert "DEBUG segquant.base.entry: stopped" in loud.stderr and loud.stderr.splitlines()[-1] == quiet.stderr.strip()


def test_a_log_keeps_no_secret_of_a_url_and_replaces_a_link(tmp_path):
    (tmp_path / "params.yaml").write_text("source: 'https://user:pass@host/x?sig=S3CRET'\nother: s3://b/k#S3CRET\n")
    (tmp_path / "logs").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "logs/select.log").symlink_to(tmp_path / "mine")
    url = "https://example.org/m/model.safetensors?X-Sig=S3CRET"
    _stage(tmp_path, "stages.select", "--results", url, "--output", "x", "--confusion", "x")
    text = (tmp_path / "logs/select.log").read_text()
    start = text[: text.index(" DEBUG ")]  # messages are their writers' matter
    assert "S3CRET" not in start and "pass" not in start
    assert "https://example.org/m/model.safetensors?..." in start and "https://..." in start and "host" not in start
    assert (tmp_path / "mine").read_text() == "mine"
