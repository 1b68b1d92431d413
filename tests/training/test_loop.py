"""The training loop ends with the same weights when it is killed, accumulates or runs in two processes."""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, small_segformer

from segquant.base.config import Phase, Training
from segquant.base.errors import ConfigError, DataError, SegquantError
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.training.data import Crops
from segquant.training.loop import decayed, factor, train
from segquant.training.losses import cross_entropy

OPTIONS = Training(warmup=2, workers=0, checkpoint_every=2, lr=1e-3, amp="float32", ema=0.9, validate_every=3)
PHASES = (Phase(3, 32, 4), Phase(4, 64, 2))
SOURCE = list(rows(open_source("scenes", "train", 4)))


def samples(crop, first, length):
    return Crops(SOURCE, crop, (1.0, 1.4), 0, first, length)


def loss(model, images, labels):
    return cross_entropy(model(images).logits, labels)


def trained(checkpoint, options=OPTIONS, loss=loss, mode="train", **arguments):
    model = small_segformer()
    assert model.config.classifier_dropout_prob > 0  # so a resumed run must restore the random state too
    model = model.train() if mode == "train" else model
    train(model, samples, loss, options, PHASES, decayed(model, 0.01), checkpoint=checkpoint, run="a run", **arguments)
    return model


def assert_same(actual, expected):
    for (name, a), (_, b) in zip(actual.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def dying(after):
    count = itertools.count()

    def loss_(model, images, labels):
        if next(count) == after:
            raise KeyboardInterrupt
        return loss(model, images, labels)

    return loss_


@pytest.fixture(scope="module", params=[0.0, 0.9])
def unbroken(request, tmp_path_factory):
    """A model after an unbroken run, and the options of that."""
    options = replace(OPTIONS, ema=request.param)
    return trained(tmp_path_factory.mktemp("unbroken") / "a.pt", options), options


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_run(stop, unbroken, tmp_path):
    whole, options = unbroken
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b.pt", options, dying(stop))
    assert_same(whole, trained(tmp_path / "b.pt", options))
    start = small_segformer().decode_head.classifier.weight
    assert not torch.equal(whole.decode_head.classifier.weight, start)


def test_a_finished_run_does_not_train_again(tmp_path):
    whole = trained(tmp_path / "a.pt")
    assert_same(whole, trained(tmp_path / "a.pt", loss=dying(0)))


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(tmp_path):
    """In eval mode: batch normalization and dropout would make parts differ from the whole."""
    whole = trained(tmp_path / "a.pt", replace(OPTIONS, ema=0.0), mode="eval")
    parts = trained(tmp_path / "b.pt", replace(OPTIONS, ema=0.0, accumulate=2), mode="eval")
    for (name, a), (_, b) in zip(whole.state_dict().items(), parts.state_dict().items(), strict=True):
        if a.is_floating_point():
            assert torch.allclose(a, b, atol=2e-4), name  # Adam divides tiny gradients by tiny numbers


def test_averaged_weights_lag_behind_the_last_weights(tmp_path):
    start, last = small_segformer(), trained(tmp_path / "a.pt", replace(OPTIONS, ema=0.0))
    averaged = trained(tmp_path / "b.pt", OPTIONS)

    def distance(model):
        return sum((a - b).square().sum() for a, b in zip(model.parameters(), start.parameters()))

    assert 0 < distance(averaged) < distance(last)


def test_norms_and_biases_do_not_decay():
    matrices, vectors = decayed(small_segformer(), 0.01)
    assert matrices["weight_decay"] == 0.01 and vectors["weight_decay"] == 0.0
    assert {p.ndim for p in vectors["params"]} == {1} and min(p.ndim for p in matrices["params"]) == 2


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_the_learning_rate_warms_up_and_decays_to_zero(schedule):
    options = replace(OPTIONS, schedule=schedule, warmup=4)
    rates = [factor(step, 20, options) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert factor(20, 20, options) == pytest.approx(0, abs=1e-12)
    halfway = {"poly": 0.5**options.power, "cosine": 0.5}
    assert factor(12, 20, options) == pytest.approx(halfway[schedule])


class FixedEvaluation:
    pictures = {}

    class scores:
        mean_iou = 0.5


def test_validation_runs_every_few_steps_and_at_the_end(tmp_path):
    records, modes = [], []

    def validate(model):
        modes.append(model.training)
        return FixedEvaluation

    model = trained(tmp_path / "a.pt", validate=validate, record=lambda *arguments: records.append(arguments))
    assert [step for step, curves, _ in records] == [3, 6, 7] and modes == [False] * 3 and not model.training
    assert all({"loss", "lr", "mean_iou"} <= set(curves) for _, curves, _ in records)


def exploding(where):
    count = itertools.count()

    def loss_(model, images, labels):
        value = loss(model, images, labels)
        if next(count) == 4:
            return value * float("nan") if where == "loss" else value + _InfiniteGradient.apply(value)
        return value

    return loss_


class _InfiniteGradient(torch.autograd.Function):
    """Zero, with an infinite gradient."""

    @staticmethod
    def forward(_, value):
        return value * 0

    @staticmethod
    def backward(_, gradient):
        return gradient * float("inf")


def test_out_of_gpu_memory_is_one_line(tmp_path):
    def loss_(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with pytest.raises(SegquantError, match="out of GPU memory at step 0: lower batch_size or crop, or raise acc"):
        trained(tmp_path / "a.pt", loss=loss_)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line_even_from_a_worker_process(workers, tmp_path, monkeypatch):
    rows = [SOURCE[0], {**SOURCE[1], "image": b"half", "id": "torn"}]
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", rows)
    with pytest.raises(DataError, match="torn") as caught:
        trained(tmp_path / "a.pt", replace(OPTIONS, workers=workers))
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("known, dtype", [(["avx512_bf16"], torch.bfloat16), (["avx2"], torch.float32)])
def test_only_processors_with_bfloat16_train_in_it(known, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("segquant.training.loop.instructions", lambda: known)
    dtypes = set()

    def loss_(model, images, labels):
        logits = model(images).logits
        dtypes.add(logits.dtype)
        return cross_entropy(logits, labels)

    trained(tmp_path / "a.pt", replace(OPTIONS, amp="bfloat16"), loss_)
    assert dtypes == {dtype}


def test_a_resumed_run_counts_the_seconds_before_the_kill(tmp_path):
    def seconds_before(loss):
        model = small_segformer()
        return train(model, samples, loss, OPTIONS, PHASES, decayed(model, 0), checkpoint=tmp_path / "a.pt", run="a")

    def slow_and_dying(model, images, labels):
        time.sleep(0.05)
        return dying_loss(model, images, labels)

    dying_loss = dying(4)
    with pytest.raises(KeyboardInterrupt):
        seconds_before(slow_and_dying)
    resumed = seconds_before(loss)
    assert 0.2 < resumed < 20 and seconds_before(loss) > resumed


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(where, tmp_path):
    with pytest.raises(SegquantError, match=r"at step 4: lower lr; .*a\.pt is kept") as caught:
        trained(tmp_path / "a.pt", loss=exploding(where))
    assert "\n" not in str(caught.value)
    state = torch.load(tmp_path / "a.pt", weights_only=True)
    assert state["step"] == 4 and all(value.isfinite().all() for value in state["model"].values())
    assert_same(trained(tmp_path / "a.pt"), trained(tmp_path / "b.pt"))


def test_a_checkpoint_of_another_run_and_a_broken_file_are_refused(tmp_path):
    trained(tmp_path / "a.pt")
    model = small_segformer()
    with pytest.raises(SegquantError, match=r"a\.pt is the checkpoint of another run \(a run\): remove it"):
        train(model, samples, loss, OPTIONS, PHASES, decayed(model, 0), checkpoint=tmp_path / "a.pt", run="another")
    (tmp_path / "b.pt").write_bytes(b"half")
    with pytest.raises(SegquantError, match=r"b\.pt is not a readable checkpoint: remove it to start over"):
        trained(tmp_path / "b.pt")


SCRIPT = """
import json, sys, torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from training.test_loop import OPTIONS, trained
from segquant.base.ranks import ranks
from dataclasses import replace
torch.set_num_threads(1)
model = trained(Path({folder!r}) / "shared.pt", replace(OPTIONS, ema=0.0, **json.loads(sys.argv[1])), mode="eval")
torch.save(model.state_dict(), Path({folder!r}) / f"rank{{ranks()[0]}}.pt")
"""


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_two_processes_end_with_the_weights_of_a_single_process(accumulate, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(ROOT / "tests"), folder=str(tmp_path)))
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    options = json.dumps({"accumulate": accumulate})  # phase 2 has one image per process, which cannot be split
    result = subprocess.run([*map(str, command), options], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = trained(tmp_path / "alone.pt", replace(OPTIONS, ema=0.0), mode="eval").state_dict()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        if value.is_floating_point():
            assert torch.allclose(first[name], value, atol=2e-4), name
    assert result.stderr.count("train: 100%") == 1  # rank 0 alone shows a bar


def test_a_batch_that_does_not_split_over_the_processes_is_one_line(monkeypatch, tmp_path):
    """The check comes before the first step, even for a batch of the second phase."""
    monkeypatch.setattr("segquant.training.loop.ranks", lambda: (0, 4))
    with pytest.raises(
        ConfigError, match="batch_size 2 does not split evenly over 4 processes: choose a multiple of 4"
    ):
        trained(tmp_path / "a.pt", loss=dying(0))


def test_the_checkpoint_of_another_number_of_processes_is_refused(monkeypatch, tmp_path):
    """The number of processes changes dropout's random numbers, and so the weights."""
    trained(tmp_path / "a.pt")
    monkeypatch.setattr("segquant.training.loop.ranks", lambda: (0, 2))
    monkeypatch.setattr("segquant.training.loop.join", lambda: None)
    with pytest.raises(SegquantError, match=r"a\.pt is the checkpoint of another run \(a run\): remove it"):
        trained(tmp_path / "a.pt")
