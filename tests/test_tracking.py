import hashlib
import io
import json
import logging
import subprocess

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from wandb_server import KEY, server, synced

from segquant import lineage, tracking
from segquant.base import config
from segquant.base.config import Qat, Recipe, Wandb
from segquant.base.errors import ConfigError

METRICS = {"mean_iou": 0.5, "protocol": "fixed-64x64-v1", "n_images": 3}
CLASSES = [{"id": 0, "name": "wall", "pixels": 4, "iou": 0.5, "accuracy": None}]


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)


def test_online_without_a_key_is_one_line_before_any_work():
    with pytest.raises(ConfigError, match="set WANDB_API_KEY, or use wandb.mode=offline"):
        Wandb(mode="online").resolve()


def test_the_environment_wins_over_params(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert Wandb(mode="online").resolve() == "disabled"
    monkeypatch.setenv("WANDB_MODE", "loud")
    with pytest.raises(ConfigError, match="WANDB_MODE 'loud' is unknown: choose one of offline, online, disabled"):
        Wandb().resolve()


def test_a_key_in_the_environment_or_in_netrc_will_do(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert Wandb(mode="online").resolve() == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert Wandb(mode="online").resolve() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")  # a server of one's own: another key
    with pytest.raises(ConfigError, match="there is no key"):
        Wandb(mode="online").resolve()
    (tmp_path / "netrc").write_text("machine wandb.example.com login user password secret\n")
    assert Wandb(mode="online").resolve() == "online"


def test_an_offline_run_is_synced_whole_later_and_holds_no_key(monkeypatch, tmp_path):
    secret = "s3cret" * 7
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", secret[:40])
    monkeypatch.setenv("DVC_EXP_NAME", "brave-exp")
    tracking.log_evaluation(Wandb(), "int8", Recipe("int8"), METRICS, CLASSES)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret[:40].encode() not in path.read_bytes(), path
    (found,) = synced(tmp_path)
    assert found.run == {
        "groupName": "brave-exp",
        "jobType": "evaluate",
        "displayName": "int8",
        "project": "segquant",
    }
    assert found.config["weights"] == "int8" and found.config["method"] == "int8"
    assert METRICS.items() <= found.summary.items()
    (table,) = (json.loads(data) for name, data in found.files.items() if name.endswith(".table.json"))
    assert table == {"columns": list(CLASSES[0]), "data": [list(CLASSES[0].values())]}


def test_each_run_is_on_disk_in_its_own_folder_when_the_call_returns(monkeypatch, tmp_path):
    for name in ("first", "second"):  # W&B's service, left running, writes later and to the folder it was started in
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        tracking.log_evaluation(Wandb(), name, Recipe("int8"), METRICS, CLASSES)
        assert [found.run["displayName"] for found in synced(tmp_path / name)] == [name]


def test_the_reports_run_has_the_table_the_pictures_and_the_artifacts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "int4").mkdir()
    (tmp_path / "int4" / "model.safetensors").write_bytes(b"x" * 321)
    results = {"float32": {**METRICS, "size_bytes": 9}, "int4": {**METRICS, "mean_iou": 0.375, "size_bytes": 321}}
    table = [
        {
            "method": name,
            "mean_iou": one["mean_iou"],
            "size_mb": one["size_bytes"] / 1e6,
            "relative_latency": None,
            "loss_points": 1.0,
        }
        for name, one in results.items()
    ]
    maps = {"truth": np.full((4, 6), 255, np.uint8), "int4": np.ones((4, 6), np.uint8)}
    photo = np.zeros((4, 6, 3), np.uint8)
    artifacts = lineage.artifacts(tmp_path, results)
    report = tracking.Report({"protocol": "p"}, table, [("a", photo, maps)], ["wall", "tree"], artifacts)
    tracking.log_report(Wandb(), lambda: report)
    tracking.log_report(Wandb(mode="disabled"), lambda: 1 / 0)  # nothing is made for a run that there is not
    tracking.log_report(Wandb(), lambda: 1 / 0)  # and what is for W&B alone does not fail a report
    (found,) = synced(tmp_path)
    assert found.run["jobType"] == "report" and found.config["protocol"] == "p"
    assert found.summary["int4/mean_iou"] == 0.375 and found.summary["float32/size_mb"] == 9e-6
    tables = [json.loads(data) for name, data in found.files.items() if name.endswith(".table.json")]
    assert {"columns": list(table[0]), "data": [list(row.values()) for row in table]} in tables
    model = next(one for one in found.artifacts if one["artifactTypeName"] == "model")
    assert model["artifactCollectionName"] == "segquant-int4"
    told = json.loads(model["metadata"])
    digest = hashlib.sha256(b"x" * 321).hexdigest()
    assert told["files"] == {"model.safetensors": {"bytes": 321, "sha256": digest}} and told["mean_iou"] == 0.375
    assert set(found.summary["pictures/a"]["masks"]) == {"truth", "int4"}
    masks = {name: data for name, data in found.files.items() if "/mask/" in name and name.endswith(".png")}
    assert sorted(np.unique(np.asarray(Image.open(io.BytesIO(data)))).tolist() for data in masks.values()) == [
        [1],
        [255],
    ]
    labels = found.config["_wandb"]["mask/class_labels"]
    assert len(labels) == 2 and all(one["value"] == {"1": "tree", "255": "not labelled"} for one in labels.values())
    assert set(found.config["_wandb"]["visualize"]) == {"mean_iou_against_size", "mean_iou_against_latency", "loss"}


def test_a_key_that_wandb_does_not_take_stops_before_any_work(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with server(accepts="o" * 40) as kept:
        monkeypatch.setenv("WANDB_BASE_URL", kept.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        with pytest.raises(ConfigError, match="W&B does not take the key or cannot be reached") as caught:
            tracking.login(Wandb(mode="online"))
        assert KEY not in str(caught.value)
        monkeypatch.setenv("WANDB_API_KEY", "o" * 40)
        tracking.login(Wandb(mode="online"))
    tracking.login(Wandb(mode="offline"))
    assert kept.asked


def test_what_results_were_made_from_is_told(monkeypatch, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text("{}")
    told = lineage.lineage(config.load(ROOT / "params.yaml"), tmp_path, {"fingerprint": "f"}, ROOT / "dvc.lock")
    assert told["model"]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert told["data"] == {"source": "scenes", "fingerprint": "f"}
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    monkeypatch.chdir(ROOT)
    assert lineage.lineage(config.load(), tmp_path, {"fingerprint": "f"})["git"]["commit"] == (head or None)
    assert {"quantize@int4", "evaluate@int4"} <= told["dvc"].keys() and "report" not in told["dvc"]
    monkeypatch.chdir(tmp_path)
    other = lineage.lineage(config.load(ROOT / "params.yaml"), tmp_path, {"fingerprint": "f"})
    assert other["dvc"] == {} and other["git"]["commit"] is None


def test_what_a_run_writes_itself_modifies_no_source(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    (tmp_path / "stages").mkdir()
    for name in ("dvc.lock", "stages/dvc.lock", "stages/qat.py"):
        (tmp_path / name).touch()
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    for name in ("config.json", "model.safetensors", "stages/dvc.lock"):
        (tmp_path / name).write_text("{}")
    params = config.load(ROOT / "params.yaml")
    assert lineage.lineage(params, tmp_path, {"fingerprint": "f"}, "none")["git"]["modified"] is False
    (tmp_path / "stages/qat.py").write_text("1")
    assert lineage.lineage(params, tmp_path, {"fingerprint": "f"}, "none")["git"]["modified"] is True


def test_disabled_writes_nothing(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tracking.log_evaluation(Wandb(mode="disabled"), "int8", Recipe("int8"), METRICS, CLASSES)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_wandb_does_not_undo_the_evaluation(monkeypatch, tmp_path, caplog):
    import wandb

    def explode(**_):
        raise RuntimeError("no disk")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "init", explode)
    with caplog.at_level(logging.WARNING):
        tracking.log_evaluation(Wandb(), "int8", Recipe("int8"), METRICS, CLASSES)
    assert "W&B could not log this evaluation (no disk)" in caplog.text


def test_a_failure_of_wandb_while_it_logs_is_a_warning_too(monkeypatch, tmp_path, caplog):
    import wandb

    def explode(*_, **__):
        raise RuntimeError("no disk")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb.Run, "log", explode)
    with caplog.at_level(logging.WARNING):
        tracking.log_evaluation(Wandb(), "int8", Recipe("int8"), METRICS, CLASSES)
        with tracking.training(Wandb(), "int2_qat", Qat(steps=1)) as record:
            record(1, {"loss": 0.5}, {})
    assert "W&B could not log this evaluation (no disk)" in caplog.text
    assert "W&B could not log this training (no disk)" in caplog.text


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_of_the_training_itself_goes_on_and_its_run_has_failed(error, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error), tracking.training(Wandb(), "int2_qat", Qat(steps=1)):
        raise error
    (run,) = synced(tmp_path)
    assert run.exit_code == 1


def test_a_training_logs_its_curves_and_pictures(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with tracking.training(Wandb(), "int2_qat", Qat(steps=20)) as record:
        record(10, {"loss": 0.5, "lr": 0.004}, {})
        record(20, {"loss": 0.25, "mean_iou": 0.6}, {"a": np.zeros((4, 6, 3), np.uint8)})
    (found,) = synced(tmp_path)
    assert (found.run["jobType"], found.run["displayName"]) == ("train", "int2_qat")
    assert [row["_step"] for row in found.history] == [10, 20] and found.history[0]["loss"] == 0.5
    assert found.exit_code == 0
    assert found.history[1]["mean_iou"] == 0.6 and "predictions/a" in found.history[1]
