import logging
import struct

import numpy as np
import pytest

from segquant import tracking
from segquant.config import Qat, Recipe, Wandb
from segquant.errors import ConfigError

METRICS = {"mean_iou": 0.5, "protocol": "fixed-64x64-v1", "n_images": 3}
CLASSES = [{"id": 0, "name": "wall", "pixels": 4, "iou": 0.5, "accuracy": None}]


def records(file):
    """The records of an offline run: W&B's own protobuf messages in a LevelDB log after seven bytes of header.

    https://github.com/google/leveldb/blob/main/doc/log_format.md: blocks of 32 KiB; each piece has a
    checksum (4 bytes), a length (2), a type (1: whole, 2: first, 3: middle, 4: last).
    """
    from wandb.proto import wandb_internal_pb2

    data, position, message = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        message += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""


@pytest.fixture(autouse=True)
def no_key(monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "DVC_EXP_NAME"):
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


def test_an_offline_run_is_written_whole_and_without_a_key(monkeypatch, tmp_path):
    secret = "s3cret" * 7
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", secret[:40])
    monkeypatch.setenv("DVC_EXP_NAME", "brave-exp")
    tracking.log_evaluation(Wandb(), "int8", Recipe("int8"), METRICS, CLASSES)
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    run, summary, config = None, {}, {}
    for record in records(file):
        if record.run.run_id:
            run = record.run
            config |= {u.key: u.value_json for u in record.run.config.update}
        summary |= {u.key: u.value_json for u in record.summary.update}
    assert (run.run_group, run.job_type, run.display_name) == ("brave-exp", "evaluate", "int8")
    assert config["weights"] == '"int8"' and config["method"] == '"int8"'
    assert float(summary["mean_iou"]) == 0.5 and int(summary["n_images"]) == 3
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret[:40].encode() not in path.read_bytes(), path


def test_each_run_is_on_disk_in_its_own_folder_when_the_call_returns(monkeypatch, tmp_path):
    for name in ("first", "second"):  # W&B's service, left running, writes later and to the folder it was started in
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        tracking.log_evaluation(Wandb(), name, Recipe("int8"), METRICS, CLASSES)
        (file,) = (tmp_path / name).glob("wandb/offline-run-*/run-*.wandb")
        assert [r.run.display_name for r in records(file) if r.run.run_id] == [name]


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


def test_an_error_of_the_training_itself_goes_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), tracking.training(Wandb(), "int2_qat", Qat(steps=1)):
        raise ZeroDivisionError


def test_a_training_logs_its_curves_and_pictures(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with tracking.training(Wandb(), "int2_qat", Qat(steps=20)) as record:
        record(10, {"loss": 0.5, "lr": 0.004}, {})
        record(20, {"loss": 0.25, "mean_iou": 0.6}, {"a": np.zeros((4, 6, 3), np.uint8)})
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    found = list(records(file))
    (run,) = (r.run for r in found if r.run.run_id)
    assert (run.job_type, run.display_name) == ("train", "int2_qat")
    rows = [{i.key or "/".join(i.nested_key): i.value_json for i in r.history.item} for r in found if r.history.item]
    assert [row["_step"] for row in rows] == ["10", "20"] and rows[0]["loss"] == "0.5"
    assert rows[1]["mean_iou"] == "0.6" and any("predictions/a" in key for key in rows[1])
