"""Data sets on the hub: what is fetched of them, and what is refused before anything is."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from hub_server import COMMIT, TOKEN, Repo, client, serve
from PIL import Image

from segquant.base import config
from segquant.base.config import Data
from segquant.base.errors import ConfigError, DataError, ModelError
from segquant.base.repository import open_repository
from segquant.data.fingerprint import fingerprint
from segquant.data.images import decode_annotation
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.runs import run

HASHES = "f3a663f7140ee7fd", "0d1c2b3a49586776"
CAMVID = Data("owner/set", classes="camvid")


def parquet(values):
    """The bytes of a Parquet file with a row per value; all pixels of the row's label have that value."""
    rng, cells = np.random.default_rng(0), {"image": [], "annotation": []}
    for value in values:
        for column, array in (("image", rng.integers(0, 256, (8, 8, 3))), ("annotation", np.full((8, 8), value))):
            encoded = io.BytesIO()
            Image.fromarray(array.astype(np.uint8)).save(encoded, "PNG")
            cells[column].append({"bytes": encoded.getvalue(), "path": f"{value}.png"})
    file = io.BytesIO()
    pq.write_table(pa.table(cells), file)
    return file.getvalue()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The files of owner/set as an older push_to_hub wrote them, on a hub that this process asks."""
    files = {f"data/train-0000{n}-of-00002-{hash}.parquet": parquet([n]) for n, hash in enumerate(HASHES)}
    files |= {f"data/val-0000{n}-of-00003-{HASHES[0]}.parquet": parquet([2 * n, 2 * n + 1]) for n in range(3)}
    files |= {"README.md": b"words", "raw/photos.zip": b"x" * 9999}
    with serve({"datasets/owner/set": Repo(files)}) as record, client(monkeypatch, tmp_path / "cache", record):
        record.repo, record.cache = Repo(files), tmp_path / "cache"
        yield record


def labels(source):
    return [int(decode_annotation(row["annotation"])[0, 0]) for row in rows(source)]


def test_only_the_files_of_the_split_are_fetched(hub):
    assert labels(open_source(CAMVID, "train")) == [0, 1]
    assert sorted(hub.fetched) == [f"data/train-0000{n}-of-00002-{HASHES[n]}.parquet" for n in range(2)]


@pytest.mark.parametrize(("limit", "files"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (99, 3), (None, 3)])
def test_a_limit_fetches_no_more_files_than_hold_so_many_rows(hub, limit, files):
    assert labels(open_source(CAMVID, "validation", limit)) == [*range(6)][:limit]
    assert sorted(hub.fetched) == [f"data/val-0000{n}-of-00003-{HASHES[0]}.parquet" for n in range(files)]


def test_a_data_set_in_the_cache_is_not_fetched_again(hub):
    pinned = replace(CAMVID, revision=COMMIT)
    assert labels(open_source(pinned, "val", 1)) == [0]
    hub.asked.clear()
    assert labels(open_source(pinned, "val", 2)) == [0, 1] and not hub.asked
    assert labels(open_source(pinned, "val", 3)) == [0, 1, 2] and len(hub.fetched) == 2


def test_a_part_of_a_data_set_in_the_cache_does_not_pass_for_the_whole(hub, monkeypatch):
    """Names such as 0000.parquet do not say how many there are."""
    files = {f"default/val/000{n}.parquet": parquet([n]) for n in range(3)}
    with serve({"datasets/owner/set": Repo(files)}) as record, client(monkeypatch, hub.cache / "other", record):
        assert labels(open_source(CAMVID, "val", 2)) == [0, 1]
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert labels(open_source(CAMVID, "val", 2)) == [0, 1]
        with pytest.raises(DataError, match="HF_HUB_OFFLINE is set and the cache does not hold all of it"):
            open_source(CAMVID, "val")


def test_the_state_of_a_data_set_is_its_commit_and_is_known_without_its_files(hub):
    assert fingerprint(CAMVID) == {"source": "owner/set", "commit": COMMIT} and not hub.fetched


@pytest.mark.parametrize(
    ("changes", "split", "message"),
    [
        ({}, "test", "owner/set has no split 'test': choose one of train, val"),
        ({"classes": None}, "val", "owner/set does not name its classes: set data.classes"),
        ({"classes": "ade20k"}, "val", "owner/set may hold label values 0 to 149 or 1 to 150: set data.reduce_labels"),
        ({"configuration": "mini"}, "val", "has no Parquet files in mini at revision main, whose folders are data:"),
        ({"revision": "v9"}, "val", "it has no revision 'v9': choose a commit, tag or branch of"),
        ({"source": "owner/none"}, "val", "'owner/none' is nothing here and the hub gives none: there is none of this"),
        ({"source": "owner/none/x"}, "val", "'owner/none/x' is not there: give 'scenes', a labelled folder"),
    ],
)
def test_what_is_refused_is_not_downloaded(hub, changes, split, message):
    with pytest.raises((ConfigError, DataError)) as error:
        open_source(replace(CAMVID, **changes), split)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not hub.fetched


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a/val.parquet", "b/val.parquet"], "has split 'val' in several folders: choose data.configuration from a, b"),
        ([f"val-00000-of-00002-{HASHES[0]}.parquet"], "has 1 of the 2 files of split 'val': fetch it again"),
        ([f"val-00000-of-00001-{h}.parquet" for h in HASHES], "has several versions of split 'val', such as val-00000"),
        (["val-00000-of-00001.parquet", f"val-00000-of-00002-{HASHES[0]}.parquet"], "has several versions of split"),
        (["default/partial-train/0000.parquet"], "has no split 'val': choose one of partial-train"),
        (["0000.parquet"], "has no split 'val' but the Parquet files 0000.parquet: name the split in the name"),
        (["scene.py", "README.md"], "has no Parquet files in revision main: choose data.configuration and data.rev"),
    ],
)
def test_a_repository_without_one_clear_split_is_refused(tmp_path, monkeypatch, files, message):
    repo = Repo({name: b"x" * 9999 for name in files})
    with serve({"datasets/owner/set": repo}) as record, client(monkeypatch, tmp_path, record):
        with pytest.raises((ConfigError, DataError)) as error:
            open_source(CAMVID, "val")
    assert message in str(error.value) and "\n" not in str(error.value) and not record.fetched


def test_a_gated_data_set_says_what_to_do_and_is_read_with_a_token(tmp_path, monkeypatch):
    repos = {"datasets/owner/set": Repo({"val.parquet": parquet([3])}, access="gated")}
    with serve(repos) as record:
        with client(monkeypatch, tmp_path, record):
            with pytest.raises(DataError, match="accept its terms at http.*/datasets/owner/set and set HF_TOKEN, or"):
                open_source(CAMVID, "val")
        with client(monkeypatch, tmp_path, record, TOKEN):
            assert labels(open_source(CAMVID, "val")) == [3]


@pytest.mark.parametrize(
    ("revision", "warned"),
    [
        (None, "using the newest revision, commit"),
        ("refs/convert/parquet", "using revision refs/convert/parquet, commit"),
        (COMMIT, None),
    ],
)
def test_a_revision_that_may_move_is_warned_of(tmp_path, monkeypatch, caplog, revision, warned):
    files = {"val.parquet": parquet([3]), "scene_parsing/val/0000.parquet": parquet([3])}
    repo = Repo(files, refs=("main", "refs/convert/parquet"))
    names = "datasets/owner/set", "datasets/zhoubolei/scene_parse_150"
    with serve(dict.fromkeys(names, repo)) as record, client(monkeypatch, tmp_path, record):
        open_source(replace(CAMVID, revision=revision, configuration="scene_parsing"), "val")
        assert (f"{warned} {COMMIT}; set data.revision to this commit to keep it" in caplog.text) == bool(warned)
        caplog.clear()
        open_source(Data("zhoubolei/scene_parse_150", revision=revision), "val")
        default = "using revision refs/convert/parquet, commit"
        assert (f"150: {default} {COMMIT}; set data.revision" in caplog.text) == (revision != COMMIT)


MODELS = {
    "no weights": ({"config.json": b"{}", "tf_model.h5": b"x"}, "has only tf_model.h5 (TensorFlow)"),
    "broken weights": (
        {"config.json": b'{"model_type": "segformer"}', "model.safetensors": b"x"},
        "model 'owner/model' cannot be loaded",
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_run_looks_at_the_model_before_the_data(tmp_path, monkeypatch, hub, model):
    files, message = MODELS[model]
    repos = {"models/owner/model": Repo(files), "datasets/owner/set": hub.repo}
    with serve(repos) as record, client(monkeypatch, tmp_path / "other", record):
        with pytest.raises(ModelError) as error:
            params = config.load(ROOT / "params.yaml")
            run(params, model="owner/model", data=["owner/set"], split="val", output=tmp_path / "out")
    assert message in str(error.value) and not (tmp_path / "out").exists()
    assert not [path for _, path, _, _ in record.asked if "datasets" in path]


def test_the_pipeline_looks_at_the_model_before_the_data(tmp_path):
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["model"]["source"] = "owner/model"
    params["data"] |= {"source": "owner/set", "classes": "camvid", "train_split": "val", "validation_split": "val"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    stages = yaml.safe_load((ROOT / "stages/dvc.yaml").read_text())["stages"]
    assert stages["baseline"]["outs"][0] in stages["data_source"]["deps"]  # so DVC asks for the model first
    repos = {
        "models/owner/model": Repo({"tf_model.h5": b""}),
        "datasets/owner/set": Repo({"val.parquet": parquet([1])}),
    }
    with serve(repos) as record:
        changes = {"HF_ENDPOINT": record.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        env = {**os.environ, **changes, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}

        def stage(name, output):
            command = [sys.executable, "-m", f"stages.{name}", "--output", output]
            return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)

        done = stage("baseline", "baseline")
        assert done.returncode == 2 and "model 'owner/model' is incomplete" in done.stderr.splitlines()[-1]
        assert not record.fetched and not (tmp_path / "baseline").exists()
        assert stage("data_source", "source.json").returncode == 0
        assert json.loads((tmp_path / "source.json").read_text())["commit"] == COMMIT and not record.fetched


def test_one_process_reads_one_commit(monkeypatch, tmp_path):
    repos = {"datasets/owner/set": Repo({"val.parquet": parquet([1])})}
    with serve(repos) as record, client(monkeypatch, tmp_path, record):
        first = open_repository("owner/set", "dataset")
        repos["datasets/owner/set"] = Repo({"val.parquet": parquet([2])}, commit="f" * 40)
        assert open_repository("owner/set", "dataset") is first and first.commit == COMMIT
