import os
import shutil

import pytest
from conftest import ade20k_folder

from segquant.base.config import Data
from segquant.base.errors import DataError
from segquant.data.fingerprint import fingerprint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path):
    ade20k_folder(tmp_path / "set", "validation", 2)
    return tmp_path / "set"


def test_the_fingerprint_changes_with_every_file_and_only_then(folder, tmp_path):
    image = next((folder / "images/validation").iterdir())
    label = next((folder / "annotations/validation").iterdir())
    changes = [
        lambda: image.write_bytes(image.read_bytes() + b" "),
        lambda: os.utime(label, ns=(1, 1)),  # different bytes of the same size have a different time
        lambda: label.rename(label.with_name("other.png")),
        lambda: shutil.copy(image, image.with_name("more.jpg")),
        lambda: image.unlink(),
    ]
    states = [fingerprint(Data(str(folder)))]
    for change in changes:
        assert fingerprint(Data(str(folder))) == states[-1]
        change()
        states.append(fingerprint(Data(str(folder))))
    assert len({state["listing"] for state in states}) == 6
    (folder / ".DS_Store").write_text("x")
    assert fingerprint(Data(str(folder))) == states[-1]
    assert [state["files"] for state in states] == [4, 4, 4, 4, 5, 4]


def test_a_link_to_nothing_is_a_file_like_others(folder):
    (folder / "README.md").symlink_to("/nowhere")
    before = fingerprint(Data(str(folder)))
    (folder / "README.md").unlink()
    assert fingerprint(Data(str(folder)))["files"] == before["files"] - 1


def test_a_name_that_is_no_utf8_counts_as_others_do(folder):
    """The stage that reads the images refuses it where it is one of them."""
    before = fingerprint(Data(str(folder)))
    (folder / os.fsdecode(b"caf\xe9.txt")).touch()
    after = fingerprint(Data(str(folder)))
    assert after["files"] == before["files"] + 1 and after["listing"] != before["listing"]


def test_an_archive_has_its_size_and_time(folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    before = fingerprint(Data(archive))
    assert before["files"] == 1 and before["bytes"] == os.path.getsize(archive)
    os.utime(archive, ns=(1, 1))
    assert fingerprint(Data(archive))["listing"] != before["listing"]


def test_a_hub_data_set_has_its_commit(tmp_path, monkeypatch):
    repository = tmp_path / "datasets--owner--name"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "snapshots" / COMMIT / "train.parquet").touch()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert fingerprint(Data("owner/name")) == {"source": "owner/name", "commit": COMMIT}


def test_the_fingerprint_covers_the_names_of_the_classes(tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("road\n")
    before = fingerprint(Data("scenes", classes=str(names)))
    names.write_text("sky\n")
    assert fingerprint(Data("scenes", classes=str(names))) != before
    assert fingerprint(Data("scenes", classes="camvid")) == fingerprint(Data("scenes")) == {"source": "scenes"}


def test_missing_data_are_one_line(tmp_path):
    with pytest.raises(DataError, match="is not there: give 'scenes', a labelled folder"):
        fingerprint(Data(str(tmp_path / "none")))
