"""The environment that every make target needs, and the workers of `make test`."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import LONGEST, ROOT, TOGETHER, first_of


def test_files_that_fork_one_process_run_on_one_worker():
    """`make test` starts each such process once; conftest.py names the files."""
    files = {path.name: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    for forks in (r"^from forked import", r"^def \w+\(.*\bwarm\):$"):
        group = [name for name, text in files.items() if re.search(forks, text, re.MULTILINE)]
        assert len(group) > 2 and len({first_of(f"tests/{name}::test") for name in group}) == 1, group
    assert len(files) == len(list((ROOT / "tests").rglob("test_*.py")))  # names are no other file's
    assert {*LONGEST, *TOGETHER, *TOGETHER.values()} <= files.keys()
    assert first_of("tests/deploy/test_graphs.py::test[a/b.py::c]") == "test_graphs.py"


@pytest.mark.slow
def test_an_environment_that_was_cut_off_is_made_again(tmp_path):
    """Its python3 comes first in PATH. Without its pyvenv.cfg it made an environment of links to themselves."""
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "requirements.txt").write_text("no-such-package-of-segquant\n")  # the installation stops here
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python3").symlink_to(os.path.realpath(sys.executable))
    env = {**os.environ, "MAKEFLAGS": "", "PIP_NO_INDEX": "1"}
    made = subprocess.run(["make", ".venv"], cwd=tmp_path, capture_output=True, text=True, env=env, timeout=120)
    assert "No matching distribution found for no-such-package-of-segquant" in made.stderr, made.stderr
    version = subprocess.run([tmp_path / ".venv/bin/python", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("Python 3")
    assert not list(tmp_path.glob(".venv/.installed-*"))  # the next `make` tries again
