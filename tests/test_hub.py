import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hub_server import COMMIT, TOKEN, Repo, client, of_folder, serve

from segquant import models
from segquant.base import hub
from segquant.base.config import Recipe
from segquant.base.errors import ConfigError, ModelError
from segquant.base.files import sha256
from segquant.base.hub import locate
from segquant.base.repository import open_repository
from segquant.lineage import origin
from segquant.quant.build import build


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


@pytest.mark.parametrize(
    ("name", "pins", "message"),
    [
        ("tiny", {"sha256": "0" * 64}, "model.sha256 .--sha256. is of a URL, and '{}' is none: leave it out"),
        ("owner/tiny", {"sha256": "0" * 64}, "model.sha256 .--sha256. is of a URL, and '{}' is none: leave it out"),
        ("tiny", {"revision": COMMIT}, "model.revision .--revision. is of a hub id, and '{}' is here: leave it out"),
        ("https://x.org/m.safetensors", {"revision": "v1"}, "is of a hub id, and '{}' is a URL: leave it out"),
    ],
)
def test_a_pin_of_what_has_none_is_refused(name, pins, message, hub_cache, tiny_folder):
    source = str(tiny_folder) if name == "tiny" else name
    with pytest.raises(ConfigError, match=message.format(source)):
        locate(source, **pins)


@pytest.mark.parametrize("name", ["owner/tiny@x", "owner/none", "nowhere", "a/b/c"])
def test_a_missing_model_is_one_line(name, hub_cache):
    with pytest.raises(ModelError) as error:
        locate(name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_missing_revision_is_one_line(hub_cache):
    with pytest.raises(ModelError, match="the hub gives none"):
        locate("owner/tiny", "v9")


def test_a_model_on_the_hub_is_fetched_once_and_without_what_it_does_not_need(tiny_folder, tmp_path, monkeypatch):
    repo = of_folder(tiny_folder, access="gated")
    repo.files |= {"README.md": b"words", "tf_model.h5": b"tf" * 9999, "pytorch_model.bin": b"x" * 9999}
    with serve({"models/owner/tiny": repo}) as record, client(monkeypatch, tmp_path / "cache", record, TOKEN):
        folder = locate("owner/tiny")
        assert sorted(record.fetched) == ["config.json", "model.safetensors", "preprocessor_config.json"]
        assert torch.equal(_logits(models.load(folder)), _logits(models.load(tiny_folder)))
        to_hub = {token for _, path, _, token in record.asked if not path.startswith("/storage")}
        to_storage = {token for _, path, _, token in record.asked if path.startswith("/storage")}
        assert (to_hub, to_storage) == ({True}, {False})
        record.asked.clear()
        assert locate("owner/tiny", COMMIT) == folder and not record.asked
        repo.files["model.safetensors"] = b"changed"
        open_repository.cache_clear()  # as in another process
        assert locate("owner/tiny") == folder and len(record.asked) == 1  # the same commit


def test_a_download_that_breaks_off_is_resumed_and_failures_that_pass_are_tried_again(
    tiny_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # bytes that are kept
    with serve({"models/owner/tiny": of_folder(tiny_folder)}) as record:
        record.fails = [("/tree/", 500), ("/tree/", 429), ("/resolve/", 500), ("/storage/", 0)]
        with client(monkeypatch, tmp_path / "cache", record):
            folder = locate("owner/tiny")
        assert not record.fails
        ranges = [range for method, path, range, _ in record.asked if path.startswith("/storage/")]
        (resumed,) = (range for range in ranges if range)  # files are fetched side by side, in any order
        assert int(resumed.removeprefix("bytes=").removesuffix("-")) > 1000
    for path in hub.files(tiny_folder):
        assert (folder / path.name).read_bytes() == path.read_bytes()


LOG_IN = "set HF_TOKEN, or log in with `hf auth login`"


@pytest.mark.parametrize(
    ("access", "token", "revision", "fails", "message"),
    [
        (None, None, None, None, f"(HTTP 401): check the name; if it is private, {LOG_IN}"),
        ("private", None, None, None, f"(HTTP 401): check the name; if it is private, {LOG_IN}"),
        ("private", "hf_other", None, None, "there is none of this name, or it is private (HTTP 404): check the name"),
        ("gated", None, None, None, f"/owner/tiny and {LOG_IN}"),
        ("gated", "hf_other", None, None, "it is gated: accept its terms at http://127.0.0.1"),
        ("gated", "hf_other", None, None, "/owner/tiny with the account of your HF_TOKEN"),
        ("public", None, "v9", None, "it has no revision 'v9': choose a commit, tag or branch of http://127.0.0.1"),
        ("public", None, "f" * 40, None, f"it has no revision '{'f' * 40}': choose a commit"),
        ("public", None, None, ("/api/", 500), "the hub fails (HTTP 500): try again later"),
        ("public", None, None, ("/api/", 429), "too many requests (HTTP 429): wait a few minutes, or set HF_TOKEN"),
        ("public", None, None, ("/resolve/", 403), f"access is forbidden (HTTP 403): {LOG_IN}"),
        ("public", None, None, ("/resolve/", 429), "too many requests (HTTP 429): wait a few minutes, or set HF_TOKEN"),
        ("public", None, None, ("/resolve/", 500), "the hub fails (HTTP 500): try again later"),
    ],
)
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(
    access, token, revision, fails, message, tiny_folder, tmp_path, monkeypatch, caplog
):
    """Whole: the hub's client wraps its reasons in long texts, of which a cut line kept the request's number."""
    repos = {"models/owner/tiny": of_folder(tiny_folder, access=access)} if access else {}
    with serve(repos) as record, client(monkeypatch, tmp_path / "cache", record, token):
        record.fails = [fails] * 99 if fails else []
        with pytest.raises(ModelError) as error:
            locate("owner/tiny", revision)
    assert str(error.value).startswith("model 'owner/tiny' is no folder here and the hub gives none: ")
    assert message in str(error.value) and "\n" not in str(error.value) and "..." not in str(error.value)
    assert not [line for line in caplog.records if line.name.startswith("segquant")]


def test_without_the_hub_the_cache_serves_what_it_holds_whole(tiny_folder, tmp_path, monkeypatch):
    repo = of_folder(tiny_folder)
    with serve({"models/owner/tiny": repo}) as record, client(monkeypatch, tmp_path / "cache", record):
        folder = locate("owner/tiny")
        record.fails = [("", 500)] * 99
        assert locate("owner/tiny") == folder
    with client(monkeypatch, tmp_path / "cache", record):  # the server is gone
        assert locate("owner/tiny") == folder
        with pytest.raises(ModelError, match="cannot be reached .*refused.*: check the network and HF_ENDPOINT"):
            locate("owner/other")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert locate("owner/tiny") == folder
        (folder / "model.safetensors").unlink()
        for name in ("owner/tiny", "owner/other"):
            with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set and the cache does not hold all of it: fetch"):
                locate(name)


def test_hf_endpoint_is_asked(tiny_folder, tmp_path):
    code = "import sys; from segquant.base.hub import locate; print(locate('owner/tiny', sys.argv[1]))"
    with serve({"models/owner/tiny": of_folder(tiny_folder)}) as record:
        changes = {"HF_ENDPOINT": record.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", code, COMMIT]
        done = subprocess.run(command, env={**os.environ, **changes}, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"models--owner--tiny/snapshots/{COMMIT}") and len(record.fetched) == 3


@pytest.fixture
def sharded(tiny_folder, tmp_path):
    """The tiny model in several shards with an index, in safetensors."""
    models.load(tiny_folder).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("model-*-of-*.safetensors"))) > 1
    return tmp_path / "sharded"


def test_a_sharded_checkpoint_is_the_model(sharded, tiny_folder, tmp_path, monkeypatch):
    repo = of_folder(sharded)
    repo.files |= {"README.md": b"words", "pytorch_model.bin": b"x" * 9999}
    with serve({"models/owner/tiny": repo}) as record, client(monkeypatch, tmp_path / "cache", record):
        fetched = locate("owner/tiny")
    assert sorted(record.fetched) == sorted(path.name for path in sharded.iterdir())
    for folder in (sharded, fetched):
        assert torch.equal(_logits(models.load(folder)), _logits(models.load(tiny_folder)))
        assert [path.name for path in hub.files(folder)] == [
            "config.json",
            "model.safetensors.index.json",
            *sorted(path.name for path in sharded.glob("model-*")),
        ]
    whole, parts, again = (
        origin(folder, {"fingerprint": ""}, "", None)["model"] for folder in (tiny_folder, sharded, fetched)
    )
    assert whole == sha256(tiny_folder / "model.safetensors") and parts == again != whole
    build(sharded, Recipe("int8"), tmp_path / "int8", torch.device("cpu"))
    build(tiny_folder, Recipe("int8"), tmp_path / "whole", torch.device("cpu"))
    for name in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "int8" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_a_figure_rests_on_changes_with_a_label_maps_content(tiny_folder, tmp_path):
    def rests_on(label_map):
        return origin(tiny_folder, {"fingerprint": ""}, "fixed-64x64-v1", label_map)

    path = tmp_path / "map.yaml"
    path.write_text("0: 1\n")
    before = rests_on(str(path))
    assert before == rests_on(str(path)) != rests_on(None) != rests_on("by_position")
    path.write_text("0: 2\n")
    assert rests_on(str(path)) != before


def test_the_pipeline_copies_every_shard(sharded, tiny_folder, tmp_path):
    root = Path(__file__).parents[1]
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["model"]["source"] = str(sharded)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    env = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}
    command = [sys.executable, "-m", "stages.baseline", "--output", tmp_path / "baseline"]
    subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True)
    assert torch.equal(_logits(models.load(tmp_path / "baseline")), _logits(models.load(tiny_folder)))


def test_shards_in_pickles_load_and_shards_that_are_missing_or_elsewhere_are_refused(sharded, tiny_folder, tmp_path):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    state = models.load(tiny_folder).state_dict()
    pickled = shutil.copytree(sharded, tmp_path / "pickled", ignore=shutil.ignore_patterns("model*"))
    half = sorted(state)[: len(state) // 2]
    parts = {name: f"pytorch_model-0000{1 if name in half else 2}-of-00002.bin" for name in state}
    for part in set(parts.values()):
        torch.save({name: state[name] for name in state if parts[name] == part}, pickled / part)
    (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": parts}))
    assert torch.equal(_logits(models.load(pickled)), _logits(models.load(tiny_folder)))
    for wrong in ({"a": "../tiny/model.safetensors"}, {}, [], None):
        (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(ModelError, match="is broken: model.safetensors.index.json names no files beside it"):
            models.load(sharded)
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    last = max(index["weight_map"].values())
    (sharded / last).unlink()
    with pytest.raises(ModelError, match=f"sharded' is incomplete: model.safetensors.index.json names {last}, which"):
        models.load(sharded)


INSTEAD = {
    "model.fp16.safetensors": "it has the variant model.fp16.safetensors: rename model.fp16.safetensors to model.safetensors (of a hub id, in a folder with its files)",
    "model.fp16-00001-of-00002.safetensors model.safetensors.index.fp16.json": "rename model.safetensors.index.fp16.json to model.safetensors.index.json",
    "onnx/model.onnx": "it has only onnx/model.onnx (ONNX): choose a model with safetensors, or save it so",
    "tf_model.h5 flax_model.msgpack": "it has only flax_model.msgpack (Flax), tf_model.h5 (TensorFlow): choose a model",
    "iter_160000.pth": "it has only iter_160000.pth (a checkpoint of another program): choose a model",
    "segformer.safetensors": "it has only segformer.safetensors (weights by another name): choose a model",
    "README.md": "is incomplete: it needs model.safetensors; it has README.md, config.json",
}


@pytest.mark.parametrize("names", INSTEAD)
def test_weights_that_do_not_load_are_named_before_anything_is_fetched(names, tmp_path, monkeypatch):
    repo = Repo({"config.json": b"{}", **{name: b"x" * 9999 for name in names.split()}})
    for name, data in repo.files.items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    with pytest.raises(ModelError) as error:
        models.load(tmp_path / "folder")
    assert INSTEAD[names] in str(error.value) and "\n" not in str(error.value)
    with serve({"models/owner/tiny": repo}) as record, client(monkeypatch, tmp_path / "cache", record):
        with pytest.raises(ModelError) as on_hub:
            locate("owner/tiny")
    assert str(on_hub.value) == str(error.value).replace(str(tmp_path / "folder"), "owner/tiny")
    assert not record.fetched


def test_a_model_of_the_cache_is_called_by_its_hub_id(hub_cache):
    (hub_cache / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ModelError, match="^model 'owner/tiny' cannot be loaded"):
        models.load(hub_cache)


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
