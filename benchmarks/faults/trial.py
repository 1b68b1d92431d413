"""Run code in a process of its own, and judge how it ended."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from segquant.base.entry import run

LIMIT_SECONDS = 60
LIMIT_BYTES = 4e9
GRACE_SECONDS = 10  # in which the processes of a command that was killed must end
BAD = ("traceback", "hang", "memory", "wrong", "left")
_PROGRESS = re.compile(r"(INFO|WARNING|DEBUG) |[\w ]+: \d+% ")
MARK = "SEGQUANT_ROBUSTNESS"  # an environment variable that every process of a trial inherits


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), output, seconds, and peak memory in bytes."""

    code: int
    stdout: str
    stderr: str
    seconds: float
    peak: int

    @property
    def errors(self) -> list[str]:
        """The lines of stderr that report neither a log record nor progress."""
        return [line for line in self.stderr.splitlines() if line.strip() and not _PROGRESS.match(line)]


@dataclass
class Row:
    """The counts of one kind of trial, and what was bad, each with how to repeat it."""

    name: str
    counts: Counter = field(default_factory=Counter)
    finds: list[str] = field(default_factory=list)

    def add(self, verdict: str, trial: str) -> None:
        kind = verdict.split(":")[0]
        self.counts[kind] += 1
        if kind in BAD:
            self.finds.append(f"{self.name} {trial}: {verdict}")


def forked(main: Callable[[], None], folder: Path, limit: float = LIMIT_SECONDS) -> Ended:
    """Call `main` as a command does (segquant.base.entry.run), in a fork whose output goes to files in `folder`.

    The fork and all of its children are killed after `limit` seconds; then the code is that of SIGKILL.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    process = os.fork()
    if not process:
        os.setsid()
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w"))  # the caller's may be another file
        code = 1
        try:
            run(main)
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    with contextlib.closing(_PidFile(process)) as ended:
        if not ended.wait(limit):
            os.killpg(process, signal.SIGKILL)
        _, status, usage = os.wait4(process, 0)
    outputs = [(folder / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, *outputs, time.monotonic() - start, usage.ru_maxrss * 1024)


class _PidFile:
    def __init__(self, process: int) -> None:
        self.number = os.pidfd_open(process)

    def wait(self, seconds: float) -> bool:
        return bool(select.select([self.number], [], [], seconds)[0])

    def close(self) -> None:
        os.close(self.number)


def judge(ended: Ended, right: Callable[[], str | None] = lambda: None, limit: float = LIMIT_SECONDS) -> str:
    """The verdict on a trial: "right", "refused", or one of BAD with its reason.

    Where the exit code is 0, `right` says what is wrong with the result, or None.
    """
    if ended.seconds > limit:
        return f"hang: {ended.seconds:.0f} s"
    if ended.peak > LIMIT_BYTES:
        return f"memory: {ended.peak / 1e9:.1f} GB"
    if "Traceback (most recent call last)" in ended.stderr or ended.code in (1, *range(-64, 0)):
        return f"traceback: exit code {ended.code}, {' | '.join(ended.errors[-3:])}"
    if ended.code == 0:
        reason = right()
        return f"wrong: {reason}" if reason else "right"
    if ended.code != 2:
        return f"wrong: exit code {ended.code}"
    errors = ended.errors
    if len(errors) != 1 or not errors[0].startswith("error: ") or len(errors[0]) > 2000:
        return f"wrong: {len(errors)} lines of error: {' | '.join(errors)[:300]}"
    return "refused"


def survivors(mark: str, grace: float = GRACE_SECONDS) -> list[str]:
    """The commands of processes with this MARK that still run after `grace` seconds; they are killed."""
    end = time.monotonic() + grace
    while (running := _marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    commands = []
    for process in running:
        with contextlib.suppress(psutil.Error):
            commands.append(" ".join(process.cmdline())[:100])
            process.kill()
    return commands


def _marked(mark: str) -> list[psutil.Process]:
    running = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                running.append(process)
    return running
