"""The program that counts faults sees each kind of fault: planted here, one by one."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT
from faults import mutations, trial
from faults.mistakes import bytes_changed, header_changed, text_changed, value_changed
from faults.outputs import contents, difference, half_written
from faults.trial import MARK, Ended, Row, forked, judge, survivors

from segquant.base.errors import DataError


@pytest.mark.parametrize(
    ("ended", "verdict"),
    [
        (Ended(0, "", "", 1, 1), "right"),
        (Ended(2, "", "INFO a: b\nshards: 100% 3/3, 1 s\nerror: x: do y\n", 1, 1), "refused"),
        (Ended(2, "", "error: x\nerror: y\n", 1, 1), "wrong"),
        (Ended(2, "", "", 1, 1), "wrong"),
        (Ended(2, "", f"error: {'x' * 3000}\n", 1, 1), "wrong"),
        (Ended(3, "", "error: x\n", 1, 1), "wrong"),
        (Ended(1, "", "error: a fault of the program, KeyError\n", 1, 1), "traceback"),
        (Ended(0, "", "Traceback (most recent call last):\n", 1, 1), "traceback"),
        (Ended(-11, "", "", 1, 1), "traceback"),
        (Ended(0, "", "", 61, 1), "hang"),
        (Ended(2, "", "error: x\n", 1, 4_000_000_001), "memory"),
    ],
)
def test_each_bad_end_is_seen(ended, verdict):
    assert judge(ended).split(":")[0] == verdict
    row = Row("row")
    row.add(judge(ended), "7")
    assert bool(row.finds) == (verdict not in ("right", "refused"))


def test_a_wrong_result_is_no_success():
    assert judge(Ended(0, "", "", 1, 1), lambda: "mIoU is 3") == "wrong: mIoU is 3"


def test_a_fork_ends_as_a_command_does(tmp_path):
    def refuse():
        print("text")
        raise DataError("a.png is broken: replace it")

    ended = forked(refuse, tmp_path)
    assert (ended.code, ended.stdout, ended.errors) == (2, "text\n", ["error: a.png is broken: replace it"])
    assert judge(ended) == "refused"
    assert judge(forked(lambda: [].pop(), tmp_path)).startswith("traceback: exit code 1")
    stop = forked(lambda: os.kill(os.getpid(), signal.SIGTERM), tmp_path)
    assert judge(stop).startswith("traceback: exit code -15")
    ended = forked(lambda: time.sleep(60), tmp_path, limit=0.3)
    assert ended.code == -9 and ended.seconds < 10
    assert forked(lambda: bytearray(400_000_000), tmp_path).peak > 400_000_000 + forked(print, tmp_path).peak / 2


def test_a_process_that_stays_is_seen_and_ended():
    with subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: "abc"}) as process:
        assert survivors("other", 0) == []
        assert survivors("abc", 0.2) == ["sleep 60"]
        assert process.wait(5) == -9


def test_a_changed_result_is_seen(tmp_path):
    for name, text in (("a/model.bin", "model"), ("speed/x.json", "{}"), ("logs/run.log", "1")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    expected = contents(tmp_path)
    (tmp_path / "speed/x.json").write_text('{"other": "seconds"}')
    (tmp_path / "logs/other.log").write_text("2")
    assert difference(contents(tmp_path), expected) is half_written(contents(tmp_path), expected) is None
    for name, text, reason in (
        ("a/model.bin", "mod", "a/model.bin is changed"),
        ("a/new", "x", "a/new is left over"),
        ("speed/x.json", '{"cut', "speed/x.json is changed"),
    ):
        before = (tmp_path / name).read_text() if (tmp_path / name).exists() else None
        (tmp_path / name).write_text(text)
        assert difference(contents(tmp_path), expected) == reason
        assert half_written(contents(tmp_path), expected).startswith(name)
        (tmp_path / name).unlink() if before is None else (tmp_path / name).write_text(before)
    (tmp_path / "a/model.bin").unlink()
    assert half_written(contents(tmp_path), expected) is None  # the run did not finish
    assert difference(contents(tmp_path), expected) == "a/model.bin is missing"


def test_mistakes_repeat_and_differ():
    value = {"a": [1, 2, {"b": None}], "c": "text"}
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    tensors = len(header).to_bytes(8, "little") + header + bytes(4)
    for change, subject in (
        (bytes_changed, bytes(range(256)) * 8),
        (value_changed, value),
        (text_changed, "a: 1\n# note\nb:\n  c: 2\n"),
        (header_changed, tensors),
    ):
        changed = [repr(change(subject, random.Random(seed))) for seed in range(50)]
        assert changed == [repr(change(subject, random.Random(seed))) for seed in range(50)]
        assert len(set(changed)) > 20 and sum(text != repr(subject) for text in changed) > 45


class Place:
    """Nothing that these trials read."""


def trial_of(monkeypatch, tmp_path, ours, theirs):
    kind = mutations.Kind(1, lambda place, draw, folder: folder, lambda place, _: print(json.dumps(ours())), theirs)
    monkeypatch.setitem(mutations.KINDS, "planted", kind)
    return mutations.trial(Place(), "planted", "0", tmp_path / str(random.random()))


def test_a_score_is_held_against_the_plain_script(monkeypatch, tmp_path):
    right = {"mean_iou": 0.5, "n": 3}
    assert trial_of(monkeypatch, tmp_path, lambda: right, lambda *_: right) == "right"
    assert trial_of(monkeypatch, tmp_path, lambda: right, None) == "right"
    for scores, reason in (
        ({"mean_iou": 0.5011, "n": 3}, "scores and right ones"),
        ({"mean_iou": 0.5, "n": 2}, "scores and right ones"),
        ({"mean_iou": float("nan"), "n": 3}, "a score is no number"),
    ):
        assert trial_of(monkeypatch, tmp_path, lambda scores=scores: scores, lambda *_: right).startswith(
            f"wrong: {reason}"
        )
    assert trial_of(monkeypatch, tmp_path, lambda: right, lambda *_: {}[1]).startswith("wrong: the plain script fails")

    def refuse():
        raise DataError("no")

    assert trial_of(monkeypatch, tmp_path, refuse, lambda *_: right) == "refused"
    assert trial_of(monkeypatch, tmp_path, lambda: {}[1], lambda *_: right).startswith("traceback")


@pytest.mark.slow
def test_a_small_count_is_clean(tmp_path):
    """The whole program with a few trials of each kind."""
    command = [sys.executable, "benchmarks/robustness.py", "--inputs", "40", "--kills", "10", "--disks", "1"]
    done = subprocess.run(
        [*command, "--work", tmp_path / "work", "--output", tmp_path / "counts.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((tmp_path / "counts.json").read_text())["counts"]
    assert sum(counts["SIGKILL during dvc repro"].values()) == 2 and "full disk" in counts
    assert trial.BAD and not any(row.get(verdict) for row in counts.values() for verdict in trial.BAD)
