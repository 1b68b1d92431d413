"""A progress bar on a terminal; a plain line now and then where there is none."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class _Lines(tqdm):
    """tqdm that writes whole lines, for logs and pipes."""

    shown = -1

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.n > max(0, self.shown):
            self.shown = self.n
            self.fp.write(f"{msg or self}".strip() + "\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        if not self.disable:
            self.disable = True
            self._decr_instances(self)
            self.display()

    @staticmethod
    def status_printer(file):
        return lambda text: None


def progress(
    *, total: int, desc: str, unit: str, initial: int = 0, every: float = 30.0, quiet: bool = False, scale: bool = False
) -> Any:
    """A context manager with `update(n)` and `set_postfix`; a line each `every` seconds when piped; none if `quiet`.

    `scale` writes k, M and G.
    """
    terminal = sys.stderr.isatty()
    kind = tqdm if terminal else _Lines
    return kind(
        total=total, desc=desc, unit=unit, initial=initial, disable=quiet, unit_scale=scale,
        dynamic_ncols=terminal, smoothing=0.1,
        mininterval=0.2 if terminal else every, maxinterval=10 if terminal else every, miniters=None if terminal else 1,
    )  # fmt: skip
