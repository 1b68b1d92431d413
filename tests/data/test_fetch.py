"""`segquant fetch-data` against a server of our own: resume, verification, unpacking."""

import hashlib
import http.server
import io
import re
import threading
import zipfile

import pytest
from conftest import ade20k_folder

from segquant.base.errors import ConfigError, DataError
from segquant.data import fetch
from segquant.data.fetch import Published
from segquant.data.sources import open_source


class Server(http.server.BaseHTTPRequestHandler):
    """Gives `content` from the asked byte on; each connection ends after `most` bytes. Keeps the asked ranges."""

    content, most, ranges, resumes, asked = b"", 10**9, [], True, []

    def do_GET(self):
        self.asked.append(self.headers.get("Range"))
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.headers.get("Range") else 0
        if not self.resumes:
            start = 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.most])

    def log_message(self, *arguments):
        pass


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
    """The handler's class, to be told how to behave, while it serves as ade20k's server."""
    handler = type("Handler", (Server,), {"content": archive, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{served.server_port}/ADEChallengeData2016.zip"
        published = Published(url, len(archive), hashlib.sha256(archive).hexdigest())
        monkeypatch.setattr(fetch, "PUBLISHED", {"ade20k": published})
        yield handler
        served.shutdown()


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_fetched_is_a_data_source(server, tmp_path):
    folder = fetch.fetch("ade20k", tmp_path / "raw")
    assert folder == tmp_path / "raw" / "ADEChallengeData2016" and files(tmp_path / "raw") == ["ADEChallengeData2016"]
    found, made = (open_source(str(root), "validation") for root in (folder, tmp_path / "made/ADEChallengeData2016"))
    assert len(found) == 3 and [found[i] for i in range(3)] == [made[i] for i in range(3)]
    assert fetch.fetch("ade20k", tmp_path / "raw") == folder and len(server.asked) == 1  # not a second time


def test_a_connection_that_breaks_is_taken_up(server, archive, tmp_path):
    server.most = len(archive) // 3 + 1
    fetch.fetch("ade20k", tmp_path)
    assert server.asked == [None, f"bytes={server.most}-", f"bytes={2 * server.most}-"]


def test_a_download_that_was_stopped_goes_on_with_the_same_command(server, archive, tmp_path):
    part = tmp_path / "ADEChallengeData2016.zip.part"
    part.write_bytes(archive[:1000])
    fetch.fetch("ade20k", tmp_path)
    assert server.asked == ["bytes=1000-"] and not part.exists()


def test_a_server_that_cannot_go_on_gives_it_from_the_start(server, archive, tmp_path):
    (tmp_path / "ADEChallengeData2016.zip.part").write_bytes(b"?" * 1000)
    server.resumes = False
    assert fetch.fetch("ade20k", tmp_path).is_dir() and server.asked == ["bytes=1000-"]


def test_an_archive_that_is_there_is_verified_and_never_removed(server, archive, tmp_path):
    file = tmp_path / "ADEChallengeData2016.zip"
    for other in (archive[:-100], archive[:-1] + b"?"):
        file.write_bytes(other)
        with pytest.raises(DataError, match="is there and is not the published file: move it away"):
            fetch.fetch("ade20k", tmp_path)
        assert file.read_bytes() == other and not server.asked
    file.write_bytes(archive)
    (tmp_path / "ADEChallengeData2016").mkdir()  # empty: not what is asked for
    assert len(list(fetch.fetch("ade20k", tmp_path).iterdir())) == 2 and not server.asked


def test_no_bytes_are_one_line_and_what_is_here_stays(server, archive, tmp_path):
    part = tmp_path / "ADEChallengeData2016.zip.part"
    part.write_bytes(archive[:1000])
    server.most = 0
    with pytest.raises(DataError, match=f"the connection ended early.; 1000 of {len(archive)} bytes are here"):
        fetch.fetch("ade20k", tmp_path)
    assert part.read_bytes() == archive[:1000]


def test_no_server_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "PUBLISHED", {"ade20k": Published("http://127.0.0.1:9/x.zip", 10, "")})
    with pytest.raises(DataError, match=r"127.0.0.1:9/x.zip cannot be fetched \(.*refused.*0 of 10 bytes") as caught:
        fetch.fetch("ade20k", tmp_path)
    assert "\n" not in str(caught.value)


def test_other_bytes_of_the_right_size_are_removed(server, archive, tmp_path):
    server.content = archive[:-1] + b"?"
    with pytest.raises(DataError, match="they are removed, fetch again"):
        fetch.fetch("ade20k", tmp_path)
    assert files(tmp_path) == ["made"]


def test_a_file_of_another_size_is_not_taken(server, archive, tmp_path):
    """A login page of some network, or another version."""
    server.content = b"<html>"
    with pytest.raises(DataError, match=f"has 6 bytes where {len(archive)} were published: nothing was fetched"):
        fetch.fetch("ade20k", tmp_path)


def test_entries_outside_the_folder_are_refused(server, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("ADEChallengeData2016/images/../../../evil.txt", b"x")
    server.content = buffer.getvalue()
    one = Published(fetch.PUBLISHED["ade20k"].url, len(server.content), hashlib.sha256(server.content).hexdigest())
    monkeypatch.setattr(fetch, "PUBLISHED", {"ade20k": one})
    with pytest.raises(DataError, match="would lie outside of it: do not trust this archive"):
        fetch.fetch("ade20k", tmp_path / "raw")
    assert not list(tmp_path.rglob("evil.txt")) and files(tmp_path / "raw") == ["ADEChallengeData2016.zip"]


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match="data set 'coco' is unknown: choose from ade20k"):
        fetch.fetch("coco", "nowhere")


def test_what_was_published():
    """As in dataset_infos.json of the hub's zhoubolei/scene_parse_150."""
    ade20k = fetch.PUBLISHED["ade20k"]
    assert ade20k.url == "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
    assert ade20k.size == 967_382_037 and ade20k.sha256.startswith("7ff1be44964418441f54") and len(ade20k.sha256) == 64
