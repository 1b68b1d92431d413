"""A lock file that DVC left cut off is mended; one in a merge is not touched."""

import random
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc_data.hashfile.hash import get_hasher
from voluptuous import MultipleInvalid

from segquant.base.locks import whole

LOCKS = [*ROOT.glob("dvc.lock"), *ROOT.glob("*/dvc.lock")]


def dvc_reads(text):
    """A `hash: m` passes DVC's schema, and fails where DVC looks for that function."""
    try:
        lock = COMPILED_LOCKFILE_SCHEMA(yaml.load(text, yaml.CSafeLoader))
        for stage in lock.get("stages", {}).values():
            for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
                get_hasher(entry.get("hash", "md5"))
    except (MultipleInvalid, yaml.YAMLError, NotImplementedError, ValueError):
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


@pytest.fixture
def repository(tmp_path):
    """A commit of two lock files; `models/dvc.lock` was written anew since."""
    (tmp_path / "models").mkdir()
    for name in ("dvc.lock", "dvc.yaml", "models/dvc.lock", "models/dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    git = ["git", "-C", tmp_path, "-c", "user.email=a@b.c", "-c", "user.name=T"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def mend(folder):
    return subprocess.run([sys.executable, "-m", "segquant.base.locks"], cwd=folder, capture_output=True, text=True)


def test_a_lock_that_is_cut_off_is_as_committed_again(repository):
    assert mend(repository).stderr == ""
    path, text = repository / "models/dvc.lock", (ROOT / "models/dvc.lock").read_text()
    cut = text[: text.index("    - path: ") + len("    - pa")]
    path.write_text(cut)
    done = mend(repository)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        "WARNING segquant.base.locks: models/dvc.lock was cut off, as DVC was killed while it wrote it: it is as in the "
        "last commit again, and logs/models-dvc.lock has what it was\n"
    )
    assert path.read_text() == text and (repository / "logs/models-dvc.lock").read_text() == cut
    assert mend(repository).stderr == ""


def test_what_is_kept_of_a_lock_is_no_lock(repository):
    """It is called logs/dvc.lock: the next run moved it on."""
    cut = (ROOT / "dvc.lock").read_text().partition("h: md5")[0]
    (repository / "dvc.lock").write_text(cut)
    assert "logs/dvc.lock has what it was" in mend(repository).stderr
    assert mend(repository).stderr == ""
    assert [path.name for path in (repository / "logs").iterdir()] == ["dvc.lock"]
    assert (repository / "logs/dvc.lock").read_text() == cut


@pytest.mark.parametrize("committed", ["", "schema: '2.0'\nstages:\n  a:\n    cm"])
def test_a_lock_that_no_commit_has_whole_is_removed(repository, committed):
    (repository / "stages").mkdir()
    (repository / "stages/dvc.yaml").write_text("")
    (repository / "stages/dvc.lock").write_text(committed or "schema: '2")
    if committed:
        subprocess.run(["git", "-C", repository, "add", "."], check=True)
        commit = ["-c", "user.email=a@b.c", "-c", "user.name=T", "commit", "-q", "-m", "cut"]
        subprocess.run(["git", "-C", repository, *commit], check=True)
    done = mend(repository)
    assert done.returncode == 0 and "it is removed, as no commit has it" in done.stderr
    assert not (repository / "stages/dvc.lock").exists() and (repository / "logs/stages-dvc.lock").exists()


def test_a_merge_is_for_the_user(repository):
    text = "<<<<<<< HEAD\nschema: '2.0'\n=======\nschema: '2.0'\n>>>>>>> b\n"
    (repository / "dvc.lock").write_text(text)
    done = mend(repository)
    assert done.returncode == 2 and (repository / "dvc.lock").read_text() == text
    assert done.stderr == (
        "error: dvc.lock holds both sides of a merge: resolve it, or run `git checkout HEAD -- dvc.lock`\n"
    )
