"""Progress of long work: a bar on a terminal, a line every 30 seconds in a pipe."""

import sys
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from segquant.base.text import on_terminal

SECONDS = 30  # between two lines in a pipe
_TEXTS = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[text]}")]
_COLUMNS = (_TEXTS[0], BarColumn(), _TEXTS[1], TimeElapsedColumn(), TimeRemainingColumn())
_console = Console(stderr=True)  # shared by all bars, so that they may nest


@contextmanager
def progress(*, total: int, desc: str, unit: str, initial: int = 0, quiet: bool = False, scale: bool = False):
    """Yield a bar with `update(n)` and `set_postfix(notes)`; `quiet` shows none, `scale` writes bytes as kB, MB, GB."""
    lines = not (quiet or sys.stderr.isatty())
    with Progress(*_COLUMNS, console=_console, disable=quiet or lines, refresh_per_second=4) as bars:
        bars.add_task(on_terminal(desc), total=total, completed=initial, text="")
        yield _Bar(bars, lines, unit, scale)


class _Bar:
    def __init__(self, bars: Progress, lines: bool, unit: str, scale: bool):
        self.bars, self.task, self.lines, self.unit, self.scale = bars, bars.tasks[0], lines, unit, scale
        self.initial, self.line_due, self.notes = self.task.completed, SECONDS, ""

    def update(self, number: int = 1) -> None:
        task, done = self.task, self.task.completed + number
        rate = (done - self.initial) / max(task.elapsed, 1e-9)
        amount, speed = (decimal, decimal(int(rate))) if self.scale else ("{:,}".format, f"{rate:.2f} {self.unit}")
        text = f"{100 * done / (task.total or 1):.0f}% {amount(done)}/{amount(task.total)}, {speed}/s{self.notes}"
        self.bars.update(task.id, completed=done, text=text)
        if self.lines and (done == task.total or task.elapsed >= self.line_due):
            self.line_due = task.elapsed + SECONDS
            print(f"{task.description}: {text}, {task.elapsed:.0f} s", file=sys.stderr, flush=True)

    def set_postfix(self, notes: dict) -> None:
        self.notes = "".join(f", {name}={value}" for name, value in notes.items())
