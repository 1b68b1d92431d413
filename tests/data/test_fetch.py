"""`segquant fetch-data` against a local server: resume, verification, unpacking."""

import hashlib
import io
import re
import zipfile
from argparse import Namespace

import pytest
from conftest import ade20k_folder
from loopback import Quiet, serving

from segquant.base.errors import ConfigError, DataError
from segquant.commands import fetch_data
from segquant.data import fetch
from segquant.data.fetch import Published
from segquant.data.sources import open_source


class Server(Quiet):
    """Serves `content` from the requested byte on, at most `most` bytes per connection; records the ranges."""

    content, most, resumes, ranges = b"", 10**9, True, []

    def do_GET(self):
        self.ranges.append(self.headers.get("Range"))
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.headers.get("Range") else 0
        if not self.resumes:
            start = 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.most])


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "made" / "ADEChallengeData2016"
    ade20k_folder(root, "validation", 3)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for path in root.rglob("*.*"):
            file.write(path, path.relative_to(root.parent))
    return buffer.getvalue()


@pytest.fixture
def server(archive, monkeypatch):
    """The class of the handler that serves ade20k; a test sets its attributes."""
    handler = type("Handler", (Server,), {"content": archive, "ranges": []})
    with serving(handler) as port:
        url = f"http://127.0.0.1:{port}/ADEChallengeData2016.zip"
        published = Published(url, len(archive), hashlib.sha256(archive).hexdigest())
        monkeypatch.setattr(fetch, "PUBLISHED", {"ade20k": published})
        yield handler


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_fetched_data_set_is_a_data_source(server, tmp_path):
    folder, verified = fetch.fetch("ade20k", tmp_path / "raw")
    assert verified
    assert folder == tmp_path / "raw" / "ADEChallengeData2016" and files(tmp_path / "raw") == ["ADEChallengeData2016"]
    fetched, made = (open_source(str(root), "validation") for root in (folder, tmp_path / "made/ADEChallengeData2016"))
    assert len(fetched) == 3 and [fetched[i] for i in range(3)] == [made[i] for i in range(3)]
    assert fetch.fetch("ade20k", tmp_path / "raw") == (folder, False) and len(server.ranges) == 1  # not again


def test_a_folder_that_was_there_is_not_said_to_be_verified(server, tmp_path, capsys, caplog):
    (tmp_path / "ADEChallengeData2016").mkdir()
    (tmp_path / "ADEChallengeData2016/notes.txt").touch()
    for json in (False, True):
        fetch_data.main(Namespace(name="ade20k", output=tmp_path, json=json))
    text, content = capsys.readouterr().out.splitlines()
    assert text.startswith(f"{tmp_path / 'ADEChallengeData2016'}, which was not checked: pass it to")
    assert content.endswith('"verified": false}') and not server.ranges
    assert "was there already and was not checked: to fetch it again, move it away" in caplog.text


def test_a_broken_connection_resumes(server, archive, tmp_path):
    server.most = len(archive) // 3 + 1
    fetch.fetch("ade20k", tmp_path)
    assert server.ranges == [None, f"bytes={server.most}-", f"bytes={2 * server.most}-"]


def test_the_same_command_resumes_a_stopped_download(server, archive, tmp_path):
    part = tmp_path / "ADEChallengeData2016.zip.part"
    part.write_bytes(archive[:1000])
    fetch.fetch("ade20k", tmp_path)
    assert server.ranges == ["bytes=1000-"] and not part.exists()


def test_a_server_that_cannot_resume_starts_again(server, archive, tmp_path):
    (tmp_path / "ADEChallengeData2016.zip.part").write_bytes(b"?" * 1000)
    server.resumes = False
    assert fetch.fetch("ade20k", tmp_path)[0].is_dir() and server.ranges == ["bytes=1000-"]


def test_an_existing_archive_is_verified_and_never_removed(server, archive, tmp_path):
    file = tmp_path / "ADEChallengeData2016.zip"
    for wrong in (archive[:-100], archive[:-1] + b"?"):
        file.write_bytes(wrong)
        with pytest.raises(DataError, match="exists but is not the published file: move it away"):
            fetch.fetch("ade20k", tmp_path)
        assert file.read_bytes() == wrong and not server.ranges
    file.write_bytes(archive)
    (tmp_path / "ADEChallengeData2016").mkdir()  # an empty folder counts as missing
    assert len(list(fetch.fetch("ade20k", tmp_path)[0].iterdir())) == 2 and not server.ranges


def test_a_server_without_bytes_is_one_line_and_keeps_the_partial_file(server, archive, tmp_path):
    part = tmp_path / "ADEChallengeData2016.zip.part"
    part.write_bytes(archive[:1000])
    server.most = 0
    with pytest.raises(
        DataError, match=f"the connection ended early.*, 1000 of {len(archive)} bytes are here: run the same"
    ):
        fetch.fetch("ade20k", tmp_path)
    assert part.read_bytes() == archive[:1000]


def test_no_server_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "PUBLISHED", {"ade20k": Published("http://127.0.0.1:9/x.zip", 10, "")})
    with pytest.raises(DataError, match=r"127.0.0.1:9/x.zip cannot be fetched \(.*refused.*0 of 10 bytes") as caught:
        fetch.fetch("ade20k", tmp_path)
    assert "\n" not in str(caught.value)


def test_wrong_bytes_of_the_right_size_are_deleted(server, archive, tmp_path):
    server.content = archive[:-1] + b"?"
    with pytest.raises(DataError, match="does not match its published SHA-256: the download was deleted"):
        fetch.fetch("ade20k", tmp_path)
    assert files(tmp_path) == ["made"]


def test_a_file_of_the_wrong_size_is_refused(server, archive, tmp_path):
    """For example the login page of a network, or a different version."""
    server.content = b"<html>"
    with pytest.raises(DataError, match=f"has 6 bytes instead of the published {len(archive)}: nothing was fetched"):
        fetch.fetch("ade20k", tmp_path)


def test_entries_outside_the_folder_are_refused(server, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("ADEChallengeData2016/images/../../../evil.txt", b"x")
    server.content = buffer.getvalue()
    url, digest = fetch.PUBLISHED["ade20k"].url, hashlib.sha256(server.content).hexdigest()
    monkeypatch.setattr(fetch, "PUBLISHED", {"ade20k": Published(url, len(server.content), digest)})
    with pytest.raises(DataError, match="would unpack outside of its folder: do not trust this archive"):
        fetch.fetch("ade20k", tmp_path / "raw")
    assert not list(tmp_path.rglob("evil.txt")) and files(tmp_path / "raw") == ["ADEChallengeData2016.zip"]


def test_an_unknown_name_lists_the_known_names():
    with pytest.raises(ConfigError, match="data set 'coco' is unknown: choose from ade20k"):
        fetch.fetch("coco", "nowhere")


def test_the_published_archive():
    """The same values as in dataset_infos.json of zhoubolei/scene_parse_150 on the hub."""
    ade20k = fetch.PUBLISHED["ade20k"]
    assert ade20k.url == "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
    assert ade20k.size == 967_382_037 and ade20k.sha256.startswith("7ff1be44964418441f54") and len(ade20k.sha256) == 64
