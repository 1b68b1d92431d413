"""Models at an https URL, from a server on this machine that may be hostile."""

import hashlib
import itertools
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loopback import Quiet, certified, serving

from segquant import load_quantized, models
from segquant.base import https, hub
from segquant.base.config import Distill, Qat, Recipe
from segquant.base.errors import ConfigError, ModelError
from segquant.base.files import sha256
from segquant.base.hub import listed_sha256, locate
from segquant.quant.build import build

PUBLIC = "93.184.216.34"


def _logits(model):
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(noise).logits


@pytest.fixture
def site(tiny_folder, tmp_path, monkeypatch):
    """An https server of the folder `root`, which has the tiny model in m/: `url` and `digest` are that model's.

    `answers` {path: function of the request} go before files; `asked` are the paths so far.
    """
    root = tmp_path / "www"
    shutil.copytree(tiny_folder, root / "m")
    certificate = certified(tmp_path / "server.pem", monkeypatch, "public.example", "inside.example")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    site = SimpleNamespace(root=root, answers={}, asked=[], digest=listed_sha256(root / "m"), certificate=certificate)

    class Site(Quiet, SimpleHTTPRequestHandler):
        def do_GET(self):
            site.asked.append(self.path)
            answer = site.answers.get(self.path)
            answer(self) if answer else super().do_GET()

    with serving(partial(Site, directory=root), certificate) as port:
        site.port, site.address = port, f"https://127.0.0.1:{port}"
        site.url = f"{site.address}/m/model.safetensors"
        yield site


def _redirect(location, status=302):
    def answer(request):
        request.send_response(status)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


def _refusal(url, digest):
    """The message of the ModelError that `locate` raises; nothing stays in the cache."""
    with pytest.raises(ModelError) as error:
        locate(url, sha256=digest)
    assert "\n" not in str(error.value)
    assert not list(Path(os.environ["XDG_CACHE_HOME"]).rglob("*.*"))
    return str(error.value)


def test_a_url_serves_float_and_quantized_models_and_is_fetched_once(site, tiny_folder):
    build(tiny_folder, Recipe("int4", 32, "hqq"), site.root / "int4", torch.device("cpu"))
    folder = locate(site.url, sha256=site.digest)
    assert torch.equal(_logits(models.load(folder)), _logits(models.load(tiny_folder)))
    quantized = load_quantized(f"{site.address}/int4/model.safetensors", sha256=listed_sha256(site.root / "int4"))
    assert torch.equal(_logits(quantized), _logits(load_quantized(site.root / "int4")))
    site.asked.clear()
    assert locate(site.url, sha256=site.digest) == folder and not site.asked


def test_the_digest_is_what_sha256sum_prints_of_the_list(site):
    if shutil.which("sha256sum") is None:
        pytest.skip("needs the command sha256sum")
    printed = subprocess.run("sha256sum * | sha256sum", shell=True, cwd=site.root / "m", capture_output=True, text=True)
    assert site.digest == printed.stdout.split()[0]


def test_a_url_without_a_model_leaves_no_files(site):
    for digest in (None, "0" * 63, site.digest.upper()):
        with pytest.raises(ConfigError, match=r"needs model.sha256 .*sha256sum config.json model.safetensors prep"):
            locate(site.url, sha256=digest)
    zeros = "0" * 64
    assert f"prints {site.digest}, not {zeros}: check the files" in _refusal(site.url, zeros)
    assert "config.json: HTTP 404 Not Found: check the URL" in _refusal(f"{site.address}/x/model.safetensors", zeros)
    assert "is not a safetensors file" in _refusal(f"{site.address}/m/pytorch_model.bin", zeros)
    for part in ("model-00001-of-00002.safetensors", "model.safetensors.index.json"):
        message = _refusal(f"{site.address}/m/{part}", zeros)
        assert "is one file of a sharded checkpoint" in message and ": give its hub id, or a folder" in message
    for bad in (
        "https://localhost:abc/x.safetensors",
        "https://[bad/x.safetensors",
        "https:///x.safetensors",
        "https://a/ x.safetensors",
    ):
        assert "cannot be fetched: it is no valid URL" in _refusal(bad, zeros)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_file_that_changed_is_refused(name, site):
    path = site.root / "m" / name
    path.write_bytes(path.read_bytes() + b" ")
    assert f"prints {listed_sha256(site.root / 'm')}, not {site.digest}" in _refusal(site.url, site.digest)


def test_a_file_that_came_or_went_is_refused(site):
    path = site.root / "m" / "preprocessor_config.json"
    text = path.read_bytes()
    path.unlink()
    assert "for its files `sha256sum config.json model.safetensors | sha256sum`" in _refusal(site.url, site.digest)
    path.write_bytes(text)
    (site.root / "m" / "processor_config.json").write_text("{}")
    assert "preprocessor_config.json processor_config.json |" in _refusal(site.url, site.digest)


def test_the_digest_of_the_weights_alone_and_what_was_fetched_by_it_are_no_longer_taken(site, tmp_path):
    weights = sha256(site.root / "m" / "model.safetensors")
    earlier = tmp_path / "cache" / "segquant" / f"{weights}-{hashlib.sha256(site.url.encode()).hexdigest()[:16]}"
    for folder in (earlier, earlier.with_name(weights)):
        shutil.copytree(site.root / "m", folder)
        (folder / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=rf"prints {site.digest}, not {weights} \(that of the weights alone\)"):
        locate(site.url, sha256=weights)
    assert locate(site.url, sha256=site.digest).name == site.digest


def test_a_damaged_copy_is_fetched_again(site):
    folder = locate(site.url, sha256=site.digest)
    (folder / "config.json").write_text("{}")
    assert listed_sha256(locate(site.url, sha256=site.digest)) == site.digest


def test_redirects_on_https_are_followed(site):
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        site.answers[f"/a/{name}"] = _redirect(f"/b/{name}", 307)
        site.answers[f"/b/{name}"] = _redirect(f"{site.address}/m/{name}?signature=x", 302)
    folder = locate(f"{site.address}/a/model.safetensors", sha256=site.digest)
    assert listed_sha256(folder) == site.digest
    assert site.asked.count("/m/config.json?signature=x") == 1


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_redirect_to_plain_http_is_refused(file, site):
    asked = []

    class Plain(Quiet, SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

    with serving(partial(Plain, directory=site.root)) as port:
        site.answers[f"/m/{file}"] = _redirect(f"http://127.0.0.1:{port}/m/{file}?secret=1")
        message = _refusal(site.url, site.digest)
    assert f"{file}: it redirects to http://127.0.0.1:{port}/m/{file}?..., which is not https: check" in message
    assert not asked


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("ftp://127.0.0.1/x", "it redirects to ftp://127.0.0.1/x, which is not https"),
        ("https://u:hidden@127.0.0.1/x", "it redirects to https://..., which has a user or a password"),
        ("https://127.0.0.1:x/", "it redirects to https://127.0.0.1:x/, which is no valid URL"),
        ("file:///etc/passwd", "HTTP 302 Found: too many redirects, or one that names no web page"),
        ("/m/config.json", "HTTP 302 Found: too many redirects, or one that names no web page"),
        ("", "HTTP 302 Found: too many redirects, or one that names no web page"),
    ],
)
def test_a_redirect_elsewhere_is_refused(location, reason, site):
    site.answers["/m/config.json"] = _redirect(location)
    assert f"config.json: {reason}" in _refusal(site.url, site.digest)


def test_redirects_end(site):
    steps = itertools.count()
    for step in range(99):
        site.answers[f"/{step}"] = lambda request: _redirect(f"/{next(steps)}")(request)
    site.answers["/m/config.json"] = site.answers["/0"]
    assert "too many redirects" in _refusal(site.url, site.digest)
    assert len(site.asked) <= 12


@pytest.mark.parametrize(
    ("location", "address", "refused"),
    [
        ("https://127.0.0.1:{port}", None, True),
        ("https://inside.example:{port}", "127.0.0.1", True),
        ("https://inside.example:{port}", "10.1.2.3", True),
        ("https://inside.example:{port}", "169.254.169.254", True),
        ("https://inside.example:{port}", "::1", True),
        ("https://inside.example:{port}", "fe80::1%lo", True),
        ("https://inside.example:{port}", "::ffff:127.0.0.1", True),
        ("https://inside.example:{port}", PUBLIC, False),
    ],
)
def test_a_redirect_leads_from_the_internet_into_no_private_network(location, address, refused, site, monkeypatch):
    """Faked: what two names resolve to, and that a connection to them arrives at the server of this test."""
    names, resolve, connect = (
        {"public.example": PUBLIC, "inside.example": address},
        socket.getaddrinfo,
        socket.create_connection,
    )
    reached = []

    def fake_resolve(host, *arguments, **options):
        return [(0, 0, 0, "", (names[host], 0))] if host in names else resolve(host, *arguments, **options)

    def fake_connect(place, *arguments, **options):
        reached.append(place[0])
        return connect(("127.0.0.1", place[1]), *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", fake_resolve)
    monkeypatch.setattr(socket, "create_connection", fake_connect)
    target = location.format(port=site.port)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        site.answers[f"/a/{name}"] = _redirect(f"{target}/m/{name}")
    url = f"https://public.example:{site.port}/a/model.safetensors"
    if refused:
        message = _refusal(url, site.digest)
        assert f"it redirects to {target}/m/config.json, which is in a private network: check the URL" in message
        assert set(reached) == {"public.example"}
    else:
        assert listed_sha256(locate(url, sha256=site.digest)) == site.digest


def test_a_redirect_with_an_endless_body_is_followed_at_once(site):
    poured = []

    def answer(request):
        request.send_response(302)
        request.send_header("Location", "/m/preprocessor_config.json?again")
        request.end_headers()
        poured.append(_pour(request))

    site.answers["/m/preprocessor_config.json"] = answer
    assert listed_sha256(locate(site.url, sha256=site.digest)) == site.digest
    assert poured[0] < 100


def _pour(request):
    """Send 0.1 MB again and again while somebody reads, up to 1 GB; how often."""
    times = 0
    try:
        while times < 10_000:
            request.wfile.write(b" " * 100_000)
            times += 1
    except OSError:
        pass
    return times


def _endless(request):
    request.send_response(200)
    request.end_headers()
    _pour(request)


def _large(request):
    request.send_response(200)
    request.send_header("Content-Length", str(1 << 40))
    request.end_headers()
    _pour(request)


@pytest.mark.parametrize("answer", [_endless, _large])
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_without_end_is_given_up(file, answer, site, monkeypatch):
    limit = 8 << 20
    monkeypatch.setitem(hub._LIMITS, "model.safetensors", limit)
    site.answers[f"/m/{file}"] = answer
    assert f"{file}: it has more than {limit:,} bytes: check the URL" in _refusal(site.url, site.digest)


def _silent(request):
    time.sleep(5)


def _silent_later(request):
    request.send_response(200)
    request.send_header("Content-Length", "100000")
    request.end_headers()
    request.wfile.write(b"{")
    time.sleep(5)


@pytest.mark.parametrize("answer", [_silent, _silent_later])
def test_a_silent_server_is_given_up(answer, site, monkeypatch):
    assert https._SECONDS <= 30
    monkeypatch.setattr(https, "_SECONDS", 1)
    site.answers["/m/config.json"] = answer
    start = time.monotonic()
    assert "config.json: no answer for 1 seconds: check the URL" in _refusal(site.url, site.digest)
    assert time.monotonic() - start < 4


def test_a_server_that_does_not_even_shake_hands_is_given_up(site, monkeypatch):
    monkeypatch.setattr(https, "_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/model.safetensors"
        assert "config.json: no answer for 1 seconds" in _refusal(url, site.digest)


def test_an_answer_that_breaks_off_or_is_none_says_so_without_the_servers_words(site):
    def short(request):
        request.send_response(200)
        request.send_header("Content-Length", "100000")
        request.end_headers()
        request.wfile.write(b"{}")

    def title(request):
        request.wfile.write(b"\x1b]0;hacked\x07\r\n\r\n")

    def phrase(request):
        request.wfile.write(b"HTTP/1.0 418 \x1b]0;hacked\x07\r\n\r\n")

    site.answers["/m/config.json"] = short
    assert "config.json: the connection ended after 2 of 100,000 bytes" in _refusal(site.url, site.digest)
    for answer, reason in ((title, "breaks off or is not HTTP (BadStatusLine)"), (phrase, "HTTP 418 I'm a Teapot")):
        site.answers["/m/config.json"] = answer
        message = _refusal(site.url, site.digest)
        assert reason in message and "\x1b" not in message


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hidden@127.0.0.1:1/m/model.safetensors",
        "https://hidden@127.0.0.1:1/m/model.safetensors",
        "https://hidden@127.0.0.1/m/model.safetensors",
        "https://user:hid/den?hidden@127.0.0.1:1/m/model.safetensors",
        "http://user:hidden@127.0.0.1:1/m/model.safetensors",
        "http://127.0.0.1:1/m/model.safetensors?signature=hidden",
        "https://127.0.0.1:1/m/model.safetensors?signature=hidden",
        "https://127.0.0.1:1/m/model.bin?signature=hidden#hidden",
        "https://127.0.0.1:1/m/model.safetensors.index.json?signature=hid@hidden",
        "https://127.0.0.1:1/m/model.safetensors?hidden and spaces",
        "https://127.0.0.1:1/m/model.safetensors?signature=hidden" + "0" * 500,
        "ftp://127.0.0.1:1/m/model.safetensors?signature=hidden" + "0" * 500,
    ],
)
@pytest.mark.parametrize("digest", ["0" * 64, None])
def test_what_a_url_hides_is_in_no_message(url, digest, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises((ModelError, ConfigError)) as error:
        locate(url, sha256=digest)
    assert "hid" not in str(error.value) and "\n" not in str(error.value)


def test_a_query_is_sent_for_the_weights_alone(site):
    assert listed_sha256(locate(f"{site.url}?signature=x", sha256=site.digest)) == site.digest
    assert [path for path in site.asked if "?" in path] == ["/m/model.safetensors?signature=x"]


def test_certificates_count_as_they_are_trusted_now(site, tmp_path, monkeypatch):
    """Not as urllib's opener of the whole process has them, which Python 3.12 and others keep."""
    other = urllib.request.HTTPSHandler(context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    monkeypatch.setattr(urllib.request, "_opener", urllib.request.build_opener(other))
    assert locate(site.url, sha256=site.digest)
    certified(tmp_path / "other.pem", monkeypatch)
    with pytest.raises(ModelError, match="config.json: .*CERTIFICATE_VERIFY_FAILED.*: check the URL"):
        locate(site.url, sha256="0" * 64)


@pytest.mark.parametrize("key", ["teacher", "student"])
def test_a_training_takes_no_url(key):
    names = {"teacher": "owner/a", "student": "owner/b", key: "https://user:hidden@127.0.0.1/model.safetensors"}
    with pytest.raises(ConfigError, match=f"{key} is a URL, whose files no digest covers here: give a fol") as error:
        Distill(**names, steps=1, batch_size=1)
    assert "hidden" not in str(error.value)
    with pytest.raises(ConfigError, match="teacher is a URL"):
        Qat(steps=1, teacher="https://127.0.0.1/model.safetensors")
