"""A lock file that DVC left cut off is named, with what mends it."""

import random
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import MultipleInvalid

from segquant.base.locks import whole

LOCKS = [*ROOT.glob("dvc.lock"), *ROOT.glob("*/dvc.lock")]


def dvc_reads(text):
    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(text, yaml.CSafeLoader))
    except (MultipleInvalid, yaml.YAMLError):
        return False
    return True


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.parent.name)
def test_a_lock_is_whole_where_dvc_reads_it(path):
    text = path.read_text()
    assert whole(text)
    text, draw = text[:6000], random.Random(0)
    cuts = [draw.randrange(len(text)) for _ in range(400)]
    verdicts = [(whole(text[:cut]), dvc_reads(text[:cut])) for cut in cuts]
    assert all(ours == theirs for ours, theirs in verdicts)
    assert {ours for ours, _ in verdicts} == {True, False}


def test_a_lock_that_is_cut_off_says_what_to_do(tmp_path):
    command = [sys.executable, "-m", "segquant.base.locks"]
    (tmp_path / "models").mkdir()
    (tmp_path / "dvc.lock").write_text((ROOT / "dvc.lock").read_text())
    assert subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stderr == b""
    text = (ROOT / "models/dvc.lock").read_text()
    (tmp_path / "models/dvc.lock").write_text(text[: text.index("    - path: ") + len("    - pa")])
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == (
        "error: models/dvc.lock is cut off, as DVC was killed while it wrote it: run `git checkout HEAD -- models/dvc.lock`, "
        "then go on\n"
    )
