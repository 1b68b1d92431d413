"""What a killed process leaves beside its output, the next one removes, and nothing that a living one writes."""

import errno
import fcntl
import subprocess
import sys

import pytest

from segquant.base import temporary as module
from segquant.base.files import replacing, write_text
from segquant.base.temporary import ASIDE, TEMPORARY, sweep, temporary

KILLED = """
import os, signal, sys
from pathlib import Path
from segquant.base import files
with files.replacing(Path(sys.argv[1], "models")) as part:
    part.mkdir()
    (part / "new").write_text("new")
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
    rename = Path.rename
    def killed(path, target):
        rename(path, target)
        os.kill(os.getpid(), signal.SIGKILL)
    Path.rename = killed
"""
WRITES = """
import sys
from pathlib import Path
from segquant.base.files import write_text
write_text(Path(sys.argv[1], "other"), "x")
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)])


@pytest.mark.parametrize("moment", ["writing", "between the two renames"])
def test_the_next_process_removes_what_a_killed_one_left(moment, tmp_path):
    """Each kill of a stage left a folder beside its output; between two renames the output itself was in there."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/old").write_text("old")
    assert python(KILLED, tmp_path, moment).returncode == -9
    assert any(name.startswith(TEMPORARY) for name in names(tmp_path))
    with temporary(tmp_path):  # of this process, which lives
        assert python(WRITES, tmp_path).returncode == 0
        assert [name.startswith(TEMPORARY) for name in names(tmp_path)] == [True, False, False]
    assert names(tmp_path) == ["models", "other"] and names(tmp_path / "models") == ["old"]


@pytest.mark.parametrize("name", ["old", "new", ASIDE[:-1]])
def test_any_name_may_be_replaced(name, tmp_path):
    """A folder called `old` could be written once, and not replaced."""
    for text in ("1", "2"):
        with replacing(tmp_path / name) as part:
            part.mkdir()
            (part / "x").write_text(text)
    assert (tmp_path / name / "x").read_text() == "2" and names(tmp_path) == [name]


def test_a_file_system_without_locks_keeps_what_is_there(tmp_path, monkeypatch):
    (tmp_path / f"{TEMPORARY}x").mkdir()

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write_text(tmp_path / "a", "a")
    sweep(tmp_path)
    assert names(tmp_path) == [f"{TEMPORARY}x", "a"]


def test_another_machine_s_folders_stay(tmp_path):
    """Its lock may not be seen here."""
    (tmp_path / f"{TEMPORARY}0-x").mkdir()
    write_text(tmp_path / "a", "a")
    assert names(tmp_path) == [f"{TEMPORARY}0-x", "a"]


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, swept = module._lock, []

    def late(folder):
        if len(swept) < 2:
            swept.append(folder)
            folder.rmdir()
            if len(swept) == 2:  # while it is being swept
                raise BlockingIOError
        return lock(folder)

    monkeypatch.setattr(module, "_lock", late)
    with temporary(tmp_path) as folder:
        assert folder.is_dir() and len(swept) == 2
    assert not names(tmp_path)
