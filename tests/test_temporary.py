"""What a killed process leaves beside its output, the next one removes, and nothing that a living one writes."""

import errno
import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from segquant.base import temporary as module
from segquant.base.errors import SegquantError
from segquant.base.files import replacing, write_text
from segquant.base.output import claimed
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


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_ends_between_the_two_renames_keeps_the_old_folder(error, tmp_path, monkeypatch):
    """Ctrl-C lost the old and the new one."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/old").write_text("old")

    def interrupted(*_):
        raise error

    with pytest.raises(error), replacing(tmp_path / "models") as part:
        part.mkdir()
        monkeypatch.setattr(Path, "replace", interrupted)
    assert names(tmp_path) == ["models"] and names(tmp_path / "models") == ["old"]


def test_a_run_after_a_kill_between_the_renames_knows_its_own_files(tmp_path):
    """It took them for the user's, now and ever after."""
    with claimed(tmp_path / "out", "run"), replacing(tmp_path / "out/a/models") as part:
        part.mkdir()
        (part / "old").write_text("old")
    assert python(KILLED, tmp_path / "out/a", "between the two renames").returncode == -9
    (tmp_path / "out/b").mkdir()
    (tmp_path / f"out/b/{TEMPORARY}0a1b2c3d-abcdefgh").mkdir()  # where nothing is written again
    with claimed(tmp_path / "out", "run"), replacing(tmp_path / "out/a/models") as part:
        part.mkdir()
        (part / "new").write_text("new")
    assert names(tmp_path / "out/a") == ["models"] and names(tmp_path / "out/a/models") == ["new"]
    assert not names(tmp_path / "out/b")


def test_too_many_open_files_are_an_error_and_leave_nothing(tmp_path, monkeypatch):
    """A folder without a lock would be swept while it is written."""

    def none_left(*_):
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(module, "_lock", none_left)
    with pytest.raises(SegquantError, match="cannot write .*: [Tt]oo many open files"):
        write_text(tmp_path / "a", "a")
    assert not names(tmp_path)


@pytest.mark.parametrize("name", ["old", "new", ASIDE[:-1]])
def test_any_name_may_be_replaced(name, tmp_path):
    """A folder called `old` could be written once, and not replaced."""
    for text in ("1", "2"):
        with replacing(tmp_path / name) as part:
            part.mkdir()
            (part / "x").write_text(text)
    assert (tmp_path / name / "x").read_text() == "2" and names(tmp_path) == [name]


def test_a_file_system_without_locks_keeps_what_is_there(tmp_path, monkeypatch):
    left = f"{TEMPORARY}0a1b2c3d-abcdefgh"
    (tmp_path / left).mkdir()

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    write_text(tmp_path / "a", "a")
    sweep(tmp_path)
    assert names(tmp_path) == [left, "a"]


def test_a_folder_of_the_users_with_a_name_like_ours_stays(tmp_path):
    (tmp_path / f"{TEMPORARY}x").mkdir()
    sweep(tmp_path)
    assert names(tmp_path) == [f"{TEMPORARY}x"]


def test_another_machine_s_folders_stay(tmp_path):
    """Its lock may not be seen here."""
    (tmp_path / f"{TEMPORARY}0a1b2c3d-abcdefgh").mkdir()
    write_text(tmp_path / "a", "a")
    assert names(tmp_path) == [f"{TEMPORARY}0a1b2c3d-abcdefgh", "a"]


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, swept = module._lock, []

    def late(folder):
        swept.append(folder)
        if len(swept) == 1:  # after it was opened
            descriptor = lock(folder)
            folder.rmdir()
            return descriptor
        if len(swept) <= 3:
            folder.rmdir()
        if len(swept) == 3:  # while it is being swept
            raise BlockingIOError
        return lock(folder)

    monkeypatch.setattr(module, "_lock", late)
    with temporary(tmp_path) as folder:
        assert folder.is_dir() and len(swept) == 4
    assert not names(tmp_path)
