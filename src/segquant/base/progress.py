"""A progress bar on a terminal; a plain line now and then where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_console = Console(stderr=True)  # one for all bars, so that one may stand inside another


class _Count:
    """How far something is, and how fast."""

    def __init__(self, total: int, initial: int, unit: str, scale: bool):
        self.total, self.initial, self.done, self.unit, self.notes = total, initial, initial, unit, ""
        self._number = (lambda value: decimal(round(value))) if scale else (lambda value: f"{value:,.0f}")
        self._scale, self.start = scale, time.monotonic()

    def update(self, number: int = 1) -> None:
        """`number` more are done."""
        self.done += number
        self.show()

    def set_postfix(self, notes: dict[str, Any]) -> None:
        """What to show beside the count from now on."""
        self.notes = ", ".join(f"{key}={value}" for key, value in notes.items())

    def show(self) -> None:
        """Nothing: of a quiet one."""

    def rate(self) -> str:
        seconds = time.monotonic() - self.start
        value = (self.done - self.initial) / seconds if seconds > 0 else 0.0
        if self._scale:
            return f"{self._number(value)}/s"
        return f"{value:.2f} {self.unit}/s" if value >= 1 or not value else f"{1 / value:.2f} s/{self.unit}"

    def count(self) -> str:
        return f"{self._number(self.done)}/{self._number(self.total)}"


class _Lines(_Count):
    """Whole lines to stderr, for logs and pipes: one each `every` seconds, and one at the end."""

    def __init__(self, desc: str, every: float, *count: Any):
        super().__init__(*count)
        self.desc, self.every, self.last, self.shown = desc, every, self.start, -1

    def show(self, final: bool = False) -> None:
        if (final and self.done > max(0, self.shown)) or time.monotonic() - self.last >= self.every:
            self.last, self.shown = time.monotonic(), self.done
            share = 100 * self.done / self.total if self.total else 100
            notes = f", {self.notes}" if self.notes else ""
            took = f"{time.monotonic() - self.start:.0f} s"
            print(
                f"{self.desc}: {share:.0f}% {self.count()} [{took}, {self.rate()}{notes}]", file=sys.stderr, flush=True
            )


class _Bar(_Count):
    """A bar of rich's that moves."""

    def __init__(self, progress: Progress, desc: str, *count: Any):
        super().__init__(*count)
        self._progress = progress
        self._task = progress.add_task(
            desc, total=self.total, completed=self.initial, count=self.count(), rate="", notes=""
        )

    def show(self) -> None:
        told = {"count": self.count(), "rate": self.rate(), "notes": self.notes}
        self._progress.update(self._task, completed=self.done, **told)


@contextmanager
def progress(
    *, total: int, desc: str, unit: str, initial: int = 0, every: float = 30.0, quiet: bool = False, scale: bool = False
) -> Iterator[_Count]:
    """A bar with `update(n)` and `set_postfix`; a line each `every` seconds when piped; none if `quiet`.

    `scale` is for bytes, told in kB, MB and GB.
    """
    count = (total, initial, unit, scale)
    if quiet:
        yield _Count(*count)
    elif sys.stderr.isatty():
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[rate]}", style="dim"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[notes]}", style="dim"),
        )
        with Progress(*columns, console=_console, refresh_per_second=4) as shown:
            yield _Bar(shown, desc, *count)
    else:
        lines = _Lines(desc, every, *count)
        try:
            yield lines
        finally:
            lines.show(final=True)
