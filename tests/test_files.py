import errno
import os
import subprocess
import sys
import tempfile
from functools import partial

import pytest
import torch

from segquant.base import config
from segquant.base.errors import ConfigError, DataError, SegquantError
from segquant.base.files import is_lfs_pointer, read_file, read_json, replacing, sha256, write_json, write_text
from segquant.base.yaml_file import read_yaml
from segquant.data.label_map import match_classes
from segquant.data.preprocessing import Preprocessing


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_on_disk_before_it_appears(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda number: flushed.append((tmp_path / "a").exists()))
    with replacing(tmp_path / "a") as part:
        torch.save({"step": 1}, part)
    assert flushed == [False] and (tmp_path / "a").exists()


def test_what_fails_leaves_no_new_folder(tmp_path):
    with pytest.raises(ValueError), replacing(tmp_path / "a/b/c") as part:
        part.write_text("x")
        raise ValueError
    assert not (tmp_path / "a").exists()
    (tmp_path / "a/b").mkdir(parents=True)
    with pytest.raises(ValueError), replacing(tmp_path / "a/b/c"):
        raise ValueError
    assert (tmp_path / "a/b").exists()


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("old", "new"):
        with replacing(tmp_path / "d") as part:
            part.mkdir()
            (part / content).write_text(content)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["new"]
    with pytest.raises(RuntimeError), replacing(tmp_path / "d") as part:
        part.mkdir()
        raise RuntimeError
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


FULL = """
import resource, signal, sys
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file
from segquant.base.files import replacing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda part: part.write_bytes(bytes(10_000)),
    lambda part: save_file({"a": np.zeros(10_000)}, part),
    lambda part: pq.write_table(pa.table({"a": np.random.default_rng(0).random(10_000)}), part),
):
    try:
        with replacing(sys.argv[1]) as part:
            write(part)
    except OSError as error:
        print(error.errno, error.filename)
"""


def test_a_disk_that_takes_no_more_names_the_file(tmp_path):
    """safetensors raises an error of its own, and Python's write and Arrow name no file."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "model.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{errno.EFBIG} {tmp_path / 'model.safetensors'}\n" * 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_to_do_even_before_the_first_byte(tmp_path, monkeypatch, number):
    def full(**_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(SegquantError, match="cannot write .*: .*: free some space, and run it again"):
        write_json(tmp_path / "a.json", {})


def test_nan_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_unwritable_and_unreadable_paths_are_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SegquantError, match="cannot write"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(SegquantError, match="does not exist"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(SegquantError, match="is not readable JSON"):
        read_json(tmp_path / "bad.json")


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_only_files_are_read_also_behind_links(kind, tmp_path):
    """A named pipe was waited for without end, and a link to /dev/zero took all memory."""
    path = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    for read in (sha256, partial(read_file, most=10), read_yaml, is_lfs_pointer):
        with pytest.raises(OSError, match="it is no file"):
            read(path)
    with pytest.raises(SegquantError, match="a.json is not readable JSON: it is no file"):
        read_json(path)
    with pytest.raises(ConfigError, match="a.json cannot be read: it is no file"):
        config.load(path)
    with pytest.raises(DataError, match="label map .*a.json cannot be read: it is no file"):
        match_classes(["a"], ["b"], path)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000])
def test_json_that_is_nested_too_deeply_is_one_line(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SegquantError, match="a.json is not readable JSON: its values are nested too deeply"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="nested too deeply"):
        Preprocessing.from_json(text)


def test_a_link_to_a_file_is_read_and_a_large_one_not(tmp_path):
    (tmp_path / "a").write_bytes(b"0123456789")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_file(tmp_path / "b", 10) == b"0123456789"
    with pytest.raises(OSError, match="it has 10 bytes, more than the 9 of any such file"):
        read_file(tmp_path / "b", 9)


@pytest.mark.parametrize("link", [False, True])
def test_a_file_takes_the_place_of_no_folder(link, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine").write_text("mine")
    (tmp_path / "link").symlink_to("folder")
    target = tmp_path / ("link" if link else "folder")
    with pytest.raises(SegquantError, match=f"{target.name} is a folder: give a file"):
        write_text(target, "text")
    assert (target / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_a_fresh_folder_replaces_nothing_that_came_meanwhile(kind, tmp_path):
    """As of two exports at once, or of files that a user saves there."""
    target = tmp_path / "out"
    with pytest.raises(SegquantError, match="out was written by another process meanwhile: give a new folder"):
        with replacing(target, fresh=True) as part:
            part.mkdir()
            (part / "ours").write_text("ours")
            if kind == "folder":
                target.mkdir()
                (target / "mine").write_text("mine")
            elif kind == "file":
                target.write_text("mine")
            else:
                target.symlink_to("nowhere")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert kind == "link" or (target / "mine" if kind == "folder" else target).read_text() == "mine"
    with replacing(tmp_path / "new", fresh=True) as part:
        part.mkdir()
        (tmp_path / "new").mkdir()  # an empty one may be there
    assert (tmp_path / "new").is_dir()
