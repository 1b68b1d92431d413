"""Hurt segquant some 2,300 times, and count how it ends: the table of docs/reliability.md.

    python benchmarks/robustness.py --output /tmp/robustness.json
    python benchmarks/robustness.py --only kills --kills 20

Kills: SIGKILL at random moments of five commands, which are then run again. Disks: commands on a disk that is full at
a random moment, or read-only (needs Linux namespaces). Inputs: files with random mistakes, scored by segquant and by a
plain script. A trial is right (the result is as it should be), refused (one line of error, exit code 2), or bad: a
traceback, a hang above 60 s, more than 4 GB, a wrong result, or something left behind. Every trial follows from its
number and --seed. Exit code 4 if one was bad.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from faults import disks, kills, mutations
from faults.place import ENVIRONMENT, ROOT, Place
from faults.trial import BAD, Row

APART = "SEGQUANT_ROBUSTNESS_APART"  # set where this process has mounts of its own
COLUMNS = {
    "right": "right",
    "refused": "refused in one line",
    "traceback": "traceback",
    "hang": "hang > 60 s",
    "memory": "> 4 GB",
    "wrong": "wrong",
    "left": "left behind",
}


def batches(a: argparse.Namespace, place: Place) -> Iterator[tuple[str, Callable[[], list[tuple[str, str, str]]]]]:
    """The trials in parts that may run side by side: each a name, and a function that gives (row, trial, verdict)s."""
    if "kills" in a.only:
        for name, job in kills.jobs(place).items():
            yield f"kills of {name}", lambda name=name, job=job: _kills(a, name, job)
    if "disks" in a.only:
        for name in disks.commands(place):
            yield f"disks of {name}", lambda name=name: _disks(a, place, name)
    if "inputs" in a.only:
        total = sum(kind.share for kind in mutations.KINDS.values())
        for name, kind in mutations.KINDS.items():
            count = max(1, round(a.inputs * kind.share / total))
            for start in range(0, count, 50):
                numbers = range(start, min(start + 50, count))
                yield f"{name} {start}", lambda name=name, numbers=numbers: _inputs(a, place, name, numbers)


def _kills(a: argparse.Namespace, name: str, job: kills.Job) -> list[tuple[str, str, str]]:
    trials = kills.Kills(job, name)
    done = [(f"SIGKILL during {name}", str(i), trials.trial(f"{a.seed}-{i}")) for i in range(a.kills // 5)]
    if name == "dvc repro":
        done += [("dvc.lock cut off", str(i), trials.cut(f"{a.seed}-{i}")) for i in range(a.kills // 5)]
    if name == "segquant run":
        done += [("two runs with one --output", str(i), trials.two(f"{a.seed}-{i}")) for i in range(a.kills // 10)]
    return done


def _disks(a: argparse.Namespace, place: Place, name: str) -> list[tuple[str, str, str]]:
    trials = disks.Disks(place, name, place.root / "disks" / name)
    done = [("full disk", f"{name} {i}", trials.full(f"{a.seed}-{i}")) for i in range(a.disks)]
    return [*done, ("read-only folder", name, trials.read_only())]


def _inputs(a: argparse.Namespace, place: Place, name: str, numbers: range) -> list[tuple[str, str, str]]:
    folder = place.root / "inputs" / name
    return [(name, str(i), mutations.trial(place, name, f"{a.seed}-{i}", folder / str(i))) for i in numbers]


def table(rows: dict[str, Row]) -> str:
    """The counts as Markdown."""
    lines = [["trials of", "number", *COLUMNS.values()], ["---"] * (len(COLUMNS) + 2)]
    for row in rows.values():
        lines.append([row.name, row.counts.total(), *(row.counts[verdict] for verdict in COLUMNS)])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _work(number: int) -> tuple[str, list[tuple[str, str, str]], float]:
    start = time.monotonic()
    name, run = BATCHES[number]
    return name, run(), time.monotonic() - start


BATCHES: list[tuple[str, Callable]] = []  # which the processes inherit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("kills", "disks", "inputs"), default=("kills", "disks", "inputs"))
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--disks", type=int, default=10, help="full disks for each command")
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="folder for what trials need (default: a temporary one)")
    parser.add_argument("--output", type=Path, help="JSON file for counts and finds")
    a = parser.parse_args()
    if "disks" in a.only and APART not in os.environ:  # mounts of its own, which end with it
        unshare = ["unshare", "--map-root-user", "--mount"]
        if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
            parser.error("this system lets no process mount disks: --only kills inputs")
        os.environ[APART] = "1"
        os.execvp("unshare", [*unshare, sys.executable, *sys.argv])
    os.environ.update(ENVIRONMENT)
    sys.path.insert(0, str(ROOT))  # for the stages
    import onnxruntime  # noqa: F401  # what every fork would import
    import torchao.quantization  # noqa: F401
    import transformers.models.segformer.modeling_segformer  # noqa: F401

    with tempfile.TemporaryDirectory(prefix="robustness-") as folder:
        place, start = Place((a.work or Path(folder)).resolve()), time.monotonic()
        place.build()
        disks.prepare(place)
        if "kills" in a.only:
            kills.prepare(place)
        BATCHES.extend(batches(a, place))
        rows: dict[str, Row] = {}
        with ProcessPoolExecutor(a.workers, get_context("fork")) as pool:
            for batch in as_completed(pool.submit(_work, number) for number in range(len(BATCHES))):
                name, done, seconds = batch.result()
                for row, trial, verdict in done:
                    rows.setdefault(row, Row(row)).add(verdict, trial)
                passed = time.monotonic() - start
                print(f"[{passed:.0f} s] {name}: {len(done)} trials, {seconds:.0f} s", file=sys.stderr)
                finds = [find for row in rows.values() for find in row.finds]
                if a.output:  # what is counted so far
                    counts = {row.name: dict(row.counts) for row in rows.values()}
                    a.output.write_text(json.dumps({"seed": a.seed, "counts": counts, "finds": finds}, indent=2) + "\n")
    print(table(rows))
    print(*finds, sep="\n", file=sys.stderr)
    return 4 if any(row.counts[verdict] for row in rows.values() for verdict in BAD) else 0


if __name__ == "__main__":
    sys.exit(main())
