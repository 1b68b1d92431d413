"""Kill the quantize stage of a method that trains: it ends with the same artifact."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from conftest import ROOT, small_segformer

from segquant import models
from segquant.data.shards import write_shards
from segquant.data.sources import open_source

# The number of threads decides how sums are split, so every run whose bytes are compared must have the same number.
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/src", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
ONE_PROCESS = (sys.executable,)
TWO_RANKS = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STEPS = 30


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workspace")
    models.save(small_segformer(), folder / "tiny")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["protocol"] = "fixed-96x96-v1"
    params["quant"]["methods"]["mine"] = {
        "weights": "int2",
        "group_size": 16,
        "algorithm": "gptq",
        "calibration": {"images": 2},
        "train": {
            "steps": STEPS,
            "batch_size": 2,
            "crop": 64,
            "lr": 0.05,
            "checkpoint_every": 1,
            "validate_every": 10,
            "validation_images": 2,
        },
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    sources = {split: open_source("scenes", split, 4) for split in ("train", "validation")}
    write_shards(sources, folder / "shards")
    (folder / "trained").mkdir()
    return folder


def command(launcher):
    options = (
        "--method mine --baseline tiny --shards shards --exports exports --trained trained --output out/mine "
        "--times out/times.json"
    )
    return [*launcher, "-m", "stages.quantize", *options.split()]


def finish(workspace, launcher):
    """Run the stage to its end: the files of its artifact, and its log."""
    result = subprocess.run(command(launcher), cwd=workspace, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    artifact = {path.name: path.read_bytes() for path in (workspace / "out" / "mine").iterdir()}
    shutil.rmtree(workspace / "out")
    assert not list((workspace / "models" / "checkpoints").glob("*.pt"))
    return artifact, result.stderr


def kill(process):
    for victim in [*psutil.Process(process.pid).children(recursive=True), process]:  # torchrun's ranks outlive it
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ONE_PROCESS, TWO_RANKS], ids=["one process", "two ranks"])
def test_a_stage_killed_at_random_steps_ends_with_the_same_bytes(launcher, workspace):
    expected, _ = finish(workspace, launcher)
    rng, kills = random.Random(0), 0
    checkpoint = workspace / "models" / "checkpoints" / "mine.pt"
    while kills < 6:
        saved_at = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with subprocess.Popen(command(launcher), cwd=workspace, env=ENV, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == saved_at):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.6))
            if process.poll() is not None:
                break
            kill(process)
            kills += 1
    assert kills >= 2 and not (workspace / "out" / "mine").exists()
    artifact, log = finish(workspace, launcher)
    assert artifact == expected
    assert "resumed models/checkpoints/mine.pt at step" in log
