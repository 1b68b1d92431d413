"""Where the time of a run of the pipeline goes: the seconds of each stage, of them importing, and DVC's own.

    python benchmarks/pipeline.py                                          # python -m segquant.warm dvc repro
    python benchmarks/pipeline.py dvc exp run -S quant.method=int2         # or any other command of DVC's
    python benchmarks/pipeline.py --write stages/seconds.json              # by which a run reports its progress

In an empty clone without lock files this times a first run. `importing` is from the line in which DVC names a stage to
the first line of the stage's log, `working` from there to the log's last line, and `DVC` the rest until DVC names the
next stage or ends: it hashes what was written and saves its lock file. A stage that writes no log has all its seconds
in `working`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from segquant.base.entry import run
from segquant.base.errors import SegquantError
from segquant.base.files import write_json

COMMAND = (sys.executable, "-m", "segquant.warm", "dvc", "repro")
SKIPPED = re.compile(r"Stage '(stages/dvc\.yaml:)?[^:']+' (didn't change|is cached)")  # frozen ones are other files'
STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}(?= )")


class Stage(NamedTuple):
    """A stage that ran, and its seconds."""

    name: str
    importing: float
    working: float
    dvc: float


def stages(lines: Iterable[tuple[float, str]], logs: Path) -> Iterator[Stage]:
    """The stages of DVC's output, (seconds since the epoch, text) a line, whose last item says when DVC ended.

    `before` the first stage, DVC reads its files and compares them with its lock file.
    """
    name, start = "before", None
    for seconds, text in lines:
        start = seconds if start is None else start
        running = re.match(r"Running stage '(.+)'", text)
        if running or not text:
            yield _stage(name, start, seconds, logs)
            start, name = seconds, running[1] if running else ""


def _stage(name: str, start: float, end: float, logs: Path) -> Stage:
    if name == "before":
        return Stage(name, 0.0, 0.0, end - start)
    path = logs / f"{name.split(':')[-1]}.log"
    stamps = [STAMP.match(line) for line in path.read_text().splitlines()] if path.is_file() else []
    times = [datetime.strptime(stamp[0], "%Y-%m-%d %H:%M:%S,%f").timestamp() for stamp in stamps if stamp]
    if not times or times[0] < start:  # none, or of an earlier run
        return Stage(name, 0.0, end - start, 0.0)
    return Stage(name, times[0] - start, times[-1] - times[0], end - times[-1])


def table(rows: Sequence[Stage], whole: float) -> str:
    """One line a stage, the longest first; before them, all together, and each kind of stage that has several."""
    kinds: dict[str, list[Stage]] = {}
    for row in rows:
        kinds.setdefault(row.name.split("@")[0], []).append(row)
    sums = [_sum(f"{kind} ({len(group)})", group) for kind, group in kinds.items() if len(group) > 1]
    everything = _sum(f"all ({len(rows)})", rows)
    lines = [f"{'stage':44} {'seconds':>8} {'importing':>10} {'working':>8} {'DVC':>6}", _line(everything)]
    for part in (sums, rows):
        lines += ["", *map(_line, sorted(part, key=_seconds, reverse=True))]
    return "\n".join([*lines, "", f"whole command: {whole:.1f} s"])


def _sum(name: str, rows: Sequence[Stage]) -> Stage:
    return Stage(name, *(sum(values) for values in zip(*(row[1:] for row in rows), strict=True)))


def _seconds(row: Stage) -> float:
    return sum(row[1:])


def _line(row: Stage) -> str:
    return f"{row.name:44} {_seconds(row):8.1f} {row.importing:10.1f} {row.working:8.1f} {row.dvc:6.1f}"


def _timed(command: Sequence[str]) -> Iterator[tuple[float, str]]:
    """Run a command; give each line that it writes with the time, and at last its end. Its stderr is left alone."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        for line in running.stdout:
            sys.stderr.write(line)
            yield time.time(), line.rstrip("\n") or " "
    if running.returncode:
        raise SegquantError(f"{' '.join(command)} ended with code {running.returncode}: mend that first")
    yield time.time(), ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write each stage's seconds as JSON, in their order")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to time (default: as above)")
    arguments = parser.parse_args()
    start = time.time()
    lines = [(start, "start"), *_timed(arguments.command or COMMAND)]
    rows = list(stages(lines, Path("logs")))
    print(table(rows, time.time() - start))
    if arguments.write:
        if skipped := [text for _, text in lines if SKIPPED.match(text)]:
            reason = f"{skipped[0]}: run this in an empty clone without dvc.lock and stages/dvc.lock"
            raise SegquantError(f"{reason}; {arguments.write} is as it was")
        write_json(arguments.write, {row.name: round(_seconds(row), 1) for row in rows[1:]})


if __name__ == "__main__":
    run(main)
