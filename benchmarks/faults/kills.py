"""SIGKILL at random moments, and two runs at once: the same command, run again, ends with the same bytes."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import NamedTuple

import psutil
import yaml

from faults.outputs import contents, difference, temporary
from faults.place import ENVIRONMENT, METHODS, ROOT, SPLIT, Place
from faults.trial import GRACE_SECONDS, LIMIT_SECONDS, MARK, Ended, judge, survivors

PIPELINE = "python -m segquant.base.locks && exec python -m segquant.warm dvc repro"  # what `make repro` runs
BUILT = [
    *("data/shards", "data/reference", "data/source.json"),
    *("models/baseline", "models/onnx", "models/quantized", "metrics/code"),
]
COUNTED = [f"metrics/{name}" for name in ("accuracy", "classes", "predictions", "selected.json", "confusion.csv")]
TRAIN = {"steps": 40, "batch_size": 2, "crop": 64, "checkpoint_every": 2, "validate_every": 20, "validation_images": 1}
TRAINED = {**METHODS["int2"], "train": TRAIN}


class Job(NamedTuple):
    """A shell command in `folder`; `outputs` are compared, and with `state` removed before each trial."""

    command: str
    folder: Path
    outputs: list[str]
    state: list[str] = []


def jobs(place: Place) -> dict[str, Job]:
    training, preparing, running, reporting = (
        place.root / name for name in ("training", "preparing", "running", "clone")
    )
    python = "python -m stages."
    run = f"segquant run --model {place.model} --data {place.data} --split {SPLIT} --params {place.params}"
    stage = f"--baseline {place.model} --shards {place.root}/shards --exports none --trained none"
    return {
        "dvc repro": Job(
            PIPELINE, place.root / "pipeline", BUILT + COUNTED, ["metrics/quantize", ".dvc/cache", ".dvc/tmp", "logs"]
        ),
        "segquant run": Job(f"{run} --methods float32,int8,int2 --output runs/x", running, ["runs/x"]),
        "training": Job(
            f"{python}quantize --method mine {stage} --output out/mine --times out/times.json",
            training,
            ["out"],
            ["models"],
        ),
        "preparing data": Job(f"{python}prepare_shards --output out/shards", preparing, ["out"]),
        "reporting": Job(
            "dvc repro --single-item --force report", reporting, ["metrics/report", "metrics/results.csv"]
        ),
    }


def prepare(place: Place) -> None:
    """Make the folders of the jobs, once."""
    (place.root / "running").mkdir(exist_ok=True)
    if place.clone.exists():
        return
    for name, methods in (("training", {"mine": TRAINED}), ("preparing", {})):
        params = yaml.safe_load(place.params.read_text())
        params["quant"]["methods"] |= methods
        if name == "preparing":
            params["data"] |= {"source": "scenes", "limit": 24, "shard_mb": 0.5}
        (place.root / name).mkdir()
        (place.root / name / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    place.fill_clone()
    shutil.copytree(place.clone, place.root / "pipeline", symlinks=True)
    done = subprocess.run(PIPELINE, shell=True, cwd=place.clone, env=_environment(place.clone, ""), capture_output=True)
    if done.returncode:
        raise RuntimeError(f"the clone's pipeline fails: {done.stderr.decode()[-2000:]}")


def _environment(folder: Path, mark: str) -> dict[str, str]:
    """A clone runs its own sources; elsewhere the repository's run."""
    sources = folder if (folder / "src").exists() else ROOT
    return {**ENVIRONMENT, "PYTHONPATH": f"{sources}/src:{sources}", MARK: mark}


class Kills:
    """Trials of one job. An undisturbed run gives what is expected, and the seconds that kills are drawn from."""

    def __init__(self, job: Job, name: str) -> None:
        self.job, self.name = job, name
        self._reset()
        ended = self._finish(600)
        if ended.code:
            raise RuntimeError(f"{name} fails undisturbed: {ended.stderr[-2000:]}")
        self.expected, self.seconds = contents(job.folder, job.outputs), ended.seconds

    def _reset(self) -> None:
        for name in [*self.job.outputs, *self.job.state]:
            path = self.job.folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for lock in (self.job.folder / "dvc.lock", self.job.folder / "stages/dvc.lock"):
            if self.job.state and lock.exists():
                lock.unlink()

    def _finish(self, limit: float) -> Ended:
        start, process = time.monotonic(), _start(self.job)
        try:
            outputs = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            _kill(process.pid, "all")
            outputs = process.communicate()
        return Ended(process.returncode, *outputs, time.monotonic() - start, 0)

    def trial(self, seed: str) -> str:
        """Kill the command, all of its processes or one of them; then run it again."""
        draw, mark = random.Random(f"{self.name} {seed}"), uuid.uuid4().hex
        self._reset()
        victim, delay = draw.choice(["command", "all", "child"]), self.seconds * draw.random() ** 0.5
        process = _start(self.job, mark)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        _kill(process.pid, victim)
        try:
            _, stderr = process.communicate(timeout=LIMIT_SECONDS + self.seconds)
        except subprocess.TimeoutExpired:
            _kill(process.pid, "all")
            return f"hang: after the kill of a {victim} at {delay:.1f} s"
        if left := survivors(mark, max(GRACE_SECONDS, self.seconds)):
            return f"left: processes {left} after the kill of {victim} at {delay:.1f} s"
        if "Traceback" in stderr:
            return f"traceback: after the kill of {victim} at {delay:.1f} s: {stderr[-300:]}"
        again = judge(self._finish(600), self._wrong, LIMIT_SECONDS + 3 * self.seconds)
        return again if again == "right" else f"wrong: after the kill of {victim} at {delay:.1f} s, {again}"

    def cut(self, seed: str) -> str:
        """Cut dvc.lock off, as DVC does that is killed while it writes it; then run the command again."""
        draw = random.Random(f"cut {seed}")
        lock = self.job.folder / draw.choice(["dvc.lock", "stages/dvc.lock"])
        text = lock.read_text()
        lock.write_text(text[: draw.randrange(len(text))])
        again = judge(self._finish(600), self._wrong, LIMIT_SECONDS + 3 * self.seconds)
        return again if again == "right" else f"wrong: {lock.name} cut off, {again}"

    def _wrong(self) -> str | None:
        left = temporary(self.job.folder)
        return difference(contents(self.job.folder, self.job.outputs), self.expected) or (str(left) if left else None)

    def two(self, seed: str) -> str:
        """Start a second run into the same folder with fewer images: one is refused, the other's results are whole."""
        draw = random.Random(f"two {seed}")
        self._reset()
        smaller = self.job._replace(command=f"{self.job.command} --limit 2")
        processes = [_start(job) for job in draw.sample([self.job, smaller], 2)]
        outputs = [process.communicate() for process in processes]
        codes = sorted(process.returncode for process in processes)
        if codes != [0, 2]:
            return f"wrong: exit codes {codes}: {[stderr[-300:] for _, stderr in outputs]}"
        results = json.loads((self.job.folder / self.job.outputs[0] / "results.json").read_text())
        winner = next(process for process in processes if process.returncode == 0)
        images = 2 if winner.args[-1] == smaller.command else 3
        counts = {name: row.get("n_images") for name, row in results.items()}
        refused = next(outputs[i][1] for i, process in enumerate(processes) if process.returncode == 2)
        if set(counts.values()) != {images} or "is in use by process" not in refused:
            return f"wrong: {counts} of {images} images; {refused[-300:]}"
        return "refused"


def _start(job: Job, mark: str = "") -> subprocess.Popen:
    """Start a job whose processes carry `mark` in their environment."""
    return subprocess.Popen(
        ["bash", "-c", job.command],
        cwd=job.folder,
        env=_environment(job.folder, mark),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _kill(process: int, victim: str) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        command = psutil.Process(process)
        children = command.children(recursive=True)
        for chosen in {"command": [command], "all": [command, *children], "child": children[-1:] or [command]}[victim]:
            with contextlib.suppress(psutil.NoSuchProcess):
                chosen.send_signal(signal.SIGKILL)
