import pickle
import shutil
import ssl
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from segquant import load_quantized, models
from segquant.base import hub
from segquant.base.config import Recipe
from segquant.base.errors import ConfigError, ModelError
from segquant.base.files import sha256
from segquant.base.hub import locate
from segquant.quant.build import build

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _logits(model):
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(noise).logits


def test_a_folder_is_its_own_location(tiny_folder):
    assert locate(tiny_folder) == tiny_folder


@pytest.fixture
def hub_cache(tiny_folder, tmp_path, monkeypatch):
    """A cache of the hub with a single commit of the tiny model, as owner/tiny."""
    repository = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository / "snapshots" / COMMIT


def test_a_hub_id_is_read_from_the_cache_at_its_revision(hub_cache, tiny_folder, caplog):
    assert locate("owner/tiny", COMMIT) == hub_cache
    assert not caplog.records or "model.revision" not in caplog.text
    folder = locate("owner/tiny")
    assert f"using the newest revision, commit {COMMIT}; set model.revision" in caplog.text
    assert torch.equal(_logits(models.load(folder)), _logits(models.load(tiny_folder)))


@pytest.mark.parametrize("name", ["owner/tiny@x", "owner/none", "nowhere", "a/b/c"])
def test_a_missing_model_is_one_line(name, hub_cache):
    with pytest.raises(ModelError) as error:
        locate(name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_missing_revision_is_one_line(hub_cache):
    with pytest.raises(ModelError, match="the hub gives none"):
        locate("owner/tiny", "v9")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """An https server of tmp_path/www whose certificate this process trusts; yields the folder and the address."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    key, certificate, root = tmp_path / "key.pem", tmp_path / "certificate.pem", tmp_path / "www"
    root.mkdir()
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    command = [*request.split(), "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *a: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=root))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, f"https://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_url_serves_float_and_quantized_models_and_is_fetched_once(server, tiny_folder):
    root, address = server
    shutil.copytree(tiny_folder, root / "float")
    build(tiny_folder, Recipe("int4", 32, "hqq"), root / "int4", torch.device("cpu"))
    digest = {name: sha256(root / name / "model.safetensors") for name in ("float", "int4")}
    folder = locate(f"{address}/float/model.safetensors", sha256=digest["float"])
    assert torch.equal(_logits(models.load(folder)), _logits(models.load(tiny_folder)))
    quantized = load_quantized(f"{address}/int4/model.safetensors", sha256=digest["int4"])
    assert torch.equal(_logits(quantized), _logits(load_quantized(root / "int4")))
    shutil.rmtree(root / "float")
    assert locate(f"{address}/float/model.safetensors", sha256=digest["float"]) == folder


def test_a_bad_url_leaves_no_files(server, tiny_folder, tmp_path):
    root, address = server
    shutil.copytree(tiny_folder, root / "m")
    url = f"{address}/m/model.safetensors"
    with pytest.raises(ConfigError, match="needs model.sha256"):
        locate(url)
    with pytest.raises(ModelError, match="invalid hash value") as error:
        locate(url, sha256="0" * 64)
    assert "\n" not in str(error.value)
    with pytest.raises(ModelError, match="404"):
        locate(f"{address}/none/model.safetensors", sha256="0" * 64)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        locate(f"{address}/m/pytorch_model.bin", sha256="0" * 64)
    for bad in ("https://localhost:abc/x.safetensors", "https://[bad/x.safetensors"):
        with pytest.raises(ModelError, match="cannot be fetched"):
            locate(bad, sha256="0" * 64)
    with pytest.raises(ModelError, match="is a file: give the folder"):
        locate(tiny_folder / "model.safetensors")
    assert not list((tmp_path / "cache").rglob("*.*"))


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_of_tensors_loads_and_a_pickle_with_code_is_refused(tiny_folder, tmp_path):
    model = models.load(tiny_folder)
    (tiny_folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), tiny_folder / "pytorch_model.bin")
    assert torch.equal(_logits(models.load(tiny_folder)), _logits(model))
    torch.save({"x": _Payload(tmp_path / "ran")}, tiny_folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(ModelError, match="can run code") as error:
        models.load(tiny_folder)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_an_incomplete_or_quantized_model_is_one_line(tiny_folder, tmp_path):
    build(tiny_folder, Recipe("int8"), tmp_path / "int8", torch.device("cpu"))
    with pytest.raises(ModelError, match="is already quantized"):
        models.load(tmp_path / "int8")
    (tiny_folder / "config.json").unlink()
    with pytest.raises(ModelError, match="is incomplete: it needs config.json"):
        hub.files(tiny_folder)
