"""Compare what a disturbed command left with what an undisturbed one writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from segquant.base.files import sha256
from segquant.base.temporary import TEMPORARY

# Files that differ between two undisturbed runs: they hold times, versions of the machine, or the process.
VARIES = re.compile(r"(results|times|hardware|\.segquant)\.json$|(^|/)(speed|quantize|logs)/|run\.log$|\.lock$")
LOGS = re.compile(r"(^|/)logs/|run\.log|\.segquant\.(json|lock)$")  # and what names the folder's owner
# Finished shards, from which the next run goes on, and the names of what was written so far.
PARTIAL = re.compile(r"(^|/)partial/|\.segquant\.files$")


def contents(root: Path, parts: Sequence[str] = (".",)) -> dict[str, str]:
    """SHA-256 of each file below these parts of `root`; "whole" for a whole file that differs between runs."""
    digests = {}
    for part in parts:
        for path in [root / part, *(root / part).rglob("*")]:
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(root).as_posix()
                digests[name] = _whole(path) if VARIES.search(name) else sha256(path)
    return digests


def _whole(path: Path) -> str:
    if path.suffix == ".json":
        try:
            json.loads(path.read_text())
        except ValueError:
            return "cut off"
    return "whole"


def difference(actual: dict[str, str], expected: dict[str, str]) -> str | None:
    """What is wrong with a finished result; None where it is as expected."""
    for name in sorted(actual.keys() | expected.keys()):
        if LOGS.search(name):
            continue
        if actual.get(name) != expected.get(name):
            state = "missing" if name not in actual else "left over" if name not in expected else "changed"
            return f"{name} is {state}"
    return None


def half_written(actual: dict[str, str], expected: dict[str, str]) -> str | None:
    """A file of a result that did not finish and is not as it should be in the end; None where there is none."""
    for name, digest in sorted(actual.items()):
        if not LOGS.search(name) and not PARTIAL.search(name) and digest != expected.get(name):
            return f"{name} is {'half-written' if name in expected else 'left over'}"
    return None


def temporary(root: Path) -> list[str]:
    """The temporary files and folders of segquant below `root`."""
    return [path.relative_to(root).as_posix() for path in root.rglob(f"{TEMPORARY}*")]
