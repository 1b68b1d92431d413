"""A killed evaluation and one shared by several processes write the same bytes as an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml
from conftest import ROOT, small_segformer

from segquant import models
from segquant.base.classes import ADE20K
from segquant.base.config import Eval, Recipe
from segquant.base.temporary import TEMPORARY
from segquant.data.shards import open_shards, write_shards
from segquant.data.sources import open_source
from segquant.evaluation.reference import write_reference
from segquant.evaluation.score import score
from segquant.quant.build import build
from segquant.warm import SOCKET, forks

ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/src", "WANDB_MODE": "disabled"}
ENV.pop("OMP_NUM_THREADS", None)  # a single process uses all cores, torchrun's one thread each: same bytes
IMAGES = 12


@pytest.fixture(scope="module", autouse=True)
def warm():
    """As in `make repro`, a stage alone is a fork of a process that has imported torch; ranks of torchrun are not."""
    with forks(ENV) as environment:
        ENV.update(environment)
        yield
        ENV.pop(SOCKET, None)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workspace (params.yaml, 12 small shards, an artifact, the reference), and the output of an undisturbed run."""
    folder = tmp_path_factory.mktemp("place")
    models.save(small_segformer(), folder / "tiny")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["protocol"] = "fixed-128x128-v1"
    params["eval"]["pictures"] = 3
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    write_shards({"validation": open_source("scenes", "validation", IMAGES)}, folder / "shards", shard_bytes=1)
    build(folder / "tiny", Recipe("int8"), folder / "artifact", torch.device("cpu"))
    shards = open_shards(folder / "shards", "validation")
    assert len(shards) == IMAGES
    write_reference(
        folder / "tiny",
        shards,
        folder / "reference",
        protocol=params["protocol"],
        settings=Eval(),
        partial=folder / "partial",
    )
    return folder, finish(folder)[0]


@pytest.fixture
def expected(made):
    assert json.loads(made[1]["metrics.json"])["n_images"] == IMAGES
    return made[1]


@pytest.fixture
def place(made):
    yield made[0]
    for name in ("partial", "out"):
        shutil.rmtree(made[0] / name, ignore_errors=True)


ONE = (sys.executable,)
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(launcher):
    return [
        *launcher,
        "-m",
        "stages.evaluate",
        "--method",
        "int8",
        "--artifact",
        "artifact",
        "--shards",
        "shards",
        "--reference",
        "reference",
        "--partial",
        "partial",
        "--metrics",
        "out/metrics.json",
        "--classes",
        "out/classes.csv",
        "--pictures",
        "out/pictures",
    ]


def finish(place, launcher=ONE):
    """Run to the end; return the files written, as {name: bytes}, and the log."""
    done = subprocess.run(command(launcher), cwd=place, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (place / "partial").exists()
    files = [p for p in (place / "out").rglob("*") if p.is_file() and TEMPORARY not in str(p)]  # a kill can leave these
    written = {str(p.relative_to(place / "out")): p.read_bytes() for p in files}
    shutil.rmtree(place / "out")
    assert len(written) == 8  # metrics and classes twice, three pictures, the confusion of each image
    return written, done.stderr


def kept(place):
    """The finished shards and the times when they were written."""
    paths = (p for p in place.glob("partial/*-*") if not p.name.startswith("."))
    return {p.name: p.stat().st_mtime_ns for p in paths}


def start_and_kill(place, launcher, delay, victim):
    """Kill the process that `victim` selects, `delay` seconds after the run's first shard is finished."""
    before = kept(place)
    with subprocess.Popen(command(launcher), cwd=place, env=ENV, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not kept(place).keys() - before.keys():
            time.sleep(0.002)
        time.sleep(delay)
        try:
            victim(process).send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            pass
        return process.communicate()[1], process.returncode


def kill_many_times(place, expected, times):
    """Kill runs at random `times` and count those that then finished, each with the expected bytes."""
    chance, finished, killed = random.Random(0), 0, 0
    while killed < times or not finished:
        before = kept(place)
        _, code = start_and_kill(place, ONE, chance.uniform(0, 0.3), lambda p: psutil.Process(p.pid))
        if code != -signal.SIGKILL:  # it ended before the kill
            shutil.rmtree(place / "out")
            continue
        killed += 1
        left = kept(place)
        if (place / "out" / "metrics.json").exists():  # everything was written except for the cleanup
            shutil.rmtree(place / "out")
        else:
            assert {name: left[name] for name in before} == before  # finished shards are not computed again
        if len(left) > IMAGES / 2:
            written, log = finish(place)
            assert written == expected and f"reusing {len(left)} of {IMAGES} shards" in log
            finished += 1
    return finished


def test_a_killed_evaluation_resumes_and_writes_the_same_bytes(place, expected):
    kill_many_times(place, expected, 2)


@pytest.mark.slow
def test_twenty_kills(place, expected):
    assert kill_many_times(place, expected, 20) >= 2


def test_damaged_shards_and_those_of_another_run_are_not_reused(place, expected):
    while start_and_kill(place, ONE, 0.1, lambda p: psutil.Process(p.pid))[1] != -signal.SIGKILL:
        shutil.rmtree(place / "out")  # on a busy machine the run may end before the kill
    first, *others = (place / "partial" / name for name in sorted(kept(place)))
    first.write_bytes(first.read_bytes()[:-5])  # as after a power loss
    for other in others:
        other.rename(other.with_name(other.name[:-4] + "0000"))  # as if the artifact or a parameter had changed
    written, log = finish(place)
    assert written == expected and "reusing" not in log


def test_a_changed_artifact_or_parameter_prevents_reuse(made, tmp_path):
    place, _ = made
    shards = open_shards(place / "shards", "validation")[:2]
    build(place / "tiny", Recipe("int2", group_size=16), tmp_path / "int2", torch.device("cpu"))
    options = {
        "artifact": place / "artifact",
        "protocol": "fixed-32x32-v1",
        "label_map": None,
        "settings": Eval(pictures=1),
        "classes": ADE20K,
    }
    seen = set()
    for change in (
        {},
        {"artifact": tmp_path / "int2"},
        {"protocol": "fixed-32x64-v1"},
        {"settings": Eval(pictures=2)},
        {"settings": Eval(pictures=1, batch_size=1)},
        {"settings": Eval(pictures=1, dtype="bfloat16")},
        {"settings": Eval(pictures=1, on_error="skip")},
    ):
        score(shards=shards, reference=place / "reference", partial=tmp_path / "kept", **(options | change))
        now = {path.name for path in (tmp_path / "kept").iterdir()}
        assert len(now - seen) == 2, change
        seen = now
    score(shards=shards, reference=place / "reference", partial=tmp_path / "kept", **options)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == seen


def test_two_processes_write_the_same_bytes_as_one(place, expected):
    assert finish(place, TWO)[0] == expected


@pytest.mark.slow
def test_the_death_of_a_rank_fails_the_run_and_a_restart_resumes(place, expected):
    def second(process):
        ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "stages.evaluate" in p.cmdline()]
        return next(p for p in ranks if p.environ().get("RANK") == "1")

    log, code = start_and_kill(place, TWO, 0, second)
    assert code != 0 and "SIGKILL" in log.upper() and not (place / "out").exists()
    assert kept(place)
    written, _ = finish(place, TWO)
    assert written == expected


def test_an_error_in_one_rank_is_reported_in_one_line(place):
    broken = place / "shards" / "validation-00001-of-00012.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-100])
    done = subprocess.run(command(TWO), cwd=place, env=ENV, capture_output=True, text=True)
    broken.write_bytes(whole)
    assert done.returncode != 0 and not (place / "out").exists()
    assert f"error: shard shards/{broken.name} is not the file that its manifest names" in done.stderr
