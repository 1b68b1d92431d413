"""The quantize stage of a method that trains, killed for real: the same artifact in the end."""

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

# Sums are parted by the number of threads, so that must be the same in every run whose bytes are compared.
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/src", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
ONE = (sys.executable,)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
STEPS = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
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
    return [
        *launcher,
        "-m",
        "stages.quantize",
        "--method",
        "mine",
        "--baseline",
        "tiny",
        "--shards",
        "shards",
        "--trained",
        "trained",
        "--output",
        "out/mine",
        "--times",
        "out/times.json",
    ]


def finish(place, launcher):
    done = subprocess.run(command(launcher), cwd=place, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {path.name: path.read_bytes() for path in (place / "out" / "mine").iterdir()}
    shutil.rmtree(place / "out")
    assert not list((place / "models" / "checkpoints").glob("*.pt"))
    return written, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [ONE, TWO], ids=["one process", "two ranks"])
def test_killed_at_random_steps_it_ends_with_the_same_bytes(launcher, place):
    wanted, _ = finish(place, launcher)
    rng, kills = random.Random(0), 0
    checkpoint = place / "models" / "checkpoints" / "mine.pt"
    while kills < 6:
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        with subprocess.Popen(command(launcher), cwd=place, env=ENV, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.6))
            if process.poll() is not None:
                break
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:  # torchrun leaves ranks behind
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.send_signal(signal.SIGKILL)
            kills += 1
    assert kills >= 2 and not (place / "out" / "mine").exists()
    found, said = finish(place, launcher)
    assert found == wanted
    assert "resumed models/checkpoints/mine.pt at step" in said
