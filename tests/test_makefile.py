"""The environment that every make target needs."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


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
