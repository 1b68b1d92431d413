"""Commands on a disk that is full at a random moment, or that cannot be written."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.outputs import contents, difference, half_written, temporary
from faults.place import SPLIT, Place
from faults.trial import LIMIT_SECONDS, Ended, forked, judge

PAGE = 4096


def commands(place: Place) -> dict[str, list[str]]:
    """Each command that writes, as an argument list; stages run in a folder that holds params.yaml alone."""
    common = ["--params", str(place.params)]
    scored = ["--model", str(place.model), "--data", str(place.data), "--split", SPLIT, *common, "--output", "out/x"]
    int8, shards = str(place.artifacts / "int8"), str(place.root / "shards")
    stage = ["--baseline", str(place.model), "--shards", shards]
    return {
        "run": ["segquant", "run", "--methods", "float32,int8", *scored],
        "sensitivity": ["segquant", "sensitivity", *scored],
        "predict": ["segquant", "predict", str(place.data / "images" / SPLIT), "--artifact", int8, "--output", "out/x"]
        + common,
        "export transformers": ["segquant", "export", "transformers", "--artifact", str(place.artifacts / "linear")]
        + ["--output", "out/x"],
        "export onnx": ["segquant", "export", "onnx", "--model", str(place.model), "--output", "out/x"],
        "prepare_shards": ["stages.prepare_shards", "--output", "out/shards"],
        "baseline": ["stages.baseline", "--output", "out/baseline"],
        "reference": ["stages.reference", *stage, "--partial", "out/partial", "--output", "out/reference"],
        "quantize": ["stages.quantize", "--method", "int2", *stage, "--exports", "none", "--trained", "none"]
        + ["--output", "out/int2", "--times", "out/times.json"],
        "evaluate": ["stages.evaluate", "--method", "int8", "--artifact", int8, "--shards", shards]
        + ["--reference", str(place.root / "reference"), "--partial", "out/partial", "--metrics", "out/metrics.json"]
        + ["--classes", "out/classes.csv", "--pictures", "out/pictures"],
    }


def main_of(command: list[str], folder: Path) -> Callable[[], None]:
    """What runs a command of `commands` in `folder`, in a fork."""

    def main() -> None:
        import importlib

        os.chdir(folder)
        sys.argv = command
        if command[0] == "segquant":
            importlib.import_module("segquant.cli")._main()
        else:
            importlib.import_module(command[0]).main()

    return main


@contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of `size` bytes, mounted while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "robustness", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def prepare(place: Place) -> None:
    """Make what stages read, once. Raises RuntimeError where that fails."""
    model = ["--baseline", "model", "--shards", "shards"]
    for command in (
        ["stages.prepare_shards", "--output", "shards"],
        ["stages.reference", *model, "--partial", "partial", "--output", "reference"],
    ):
        if not (place.root / command[-1]).exists():
            ended = forked(main_of(command, place.root), place.root / "build", limit=300)
            if ended.code:
                raise RuntimeError(f"{command[0]} fails: {ended.stderr}")


class Disks:
    """Trials of one command; `expected` and `used` (bytes) are those of an undisturbed run of it."""

    def __init__(self, place: Place, name: str, folder: Path) -> None:
        self.place, self.name, self.folder = place, name, folder
        self.command, self.limit = commands(place)[name], 600.0
        with self._disk(1 << 30) as work:
            ended = self._run(work)
            self.limit = ended.seconds + LIMIT_SECONDS
            if ended.code:
                raise RuntimeError(f"{name} fails undisturbed: {ended.stderr}")
            self.expected, space = contents(work), os.statvfs(work)
            self.used = (space.f_blocks - space.f_bfree) * space.f_frsize

    @contextmanager
    def _disk(self, size: int) -> Iterator[Path]:
        with disk(self.folder / "disk", size) as work:
            shutil.copy(self.place.params, work)
            yield work

    def _run(self, work: Path) -> Ended:
        return forked(main_of(self.command, work), self.folder / "streams", self.limit)

    def full(self, seed: str) -> str:
        """Run on a disk that is too small, then again with enough space."""
        pages = random.Random(f"{self.name} {seed}").randrange(4, max(5, self.used // PAGE))
        with self._disk(pages * PAGE) as work:
            verdict = judge(ended := self._run(work), lambda: difference(contents(work), self.expected), self.limit)
            if verdict != "refused":
                return verdict
            if "No space left on device" not in ended.stderr or "free some space" not in ended.stderr:
                return f"wrong: the line does not say what to do: {ended.errors}"
            left = half_written(contents(work), self.expected) or ", ".join(temporary(work))
            if left:
                return f"left: {left}"
            remount(work, "size=1g")
            again = judge(self._run(work), lambda: difference(contents(work), self.expected), self.limit)
            return "refused" if again == "right" else f"wrong: with enough space, {again}"

    def read_only(self) -> str:
        """Run in a folder that cannot be written."""
        with self._disk(1 << 30) as work:
            remount(work, "ro")
            verdict = judge(self._run(work), lambda: "it succeeds", self.limit)
            return verdict if set(contents(work)) == {"params.yaml"} else f"left: {sorted(contents(work))}"
