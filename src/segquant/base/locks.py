"""Mend a lock file that DVC left cut off when it was killed: every later command of DVC would fail on it.

python -m segquant.base.locks
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Any

import yaml

from segquant.base.entry import run
from segquant.base.errors import SegquantError
from segquant.base.files import write_text

log = logging.getLogger("segquant.base.locks")  # this is __main__


def main() -> None:
    for path in sorted(path for pattern in ("dvc.lock", "*/dvc.lock") for path in Path().glob(pattern)):
        text = path.read_text(errors="replace")
        if whole(text) or not path.with_suffix(".yaml").exists():  # as logs/dvc.lock, which `_restore` keeps
            continue
        if any(line.startswith(("<<<<<<< ", ">>>>>>> ")) for line in text.splitlines()):
            raise SegquantError(f"{path} holds both sides of a merge: resolve it, or run `git checkout HEAD -- {path}`")
        _restore(path, text)


def _restore(path: Path, text: str) -> None:
    """Give a lock file its committed text, or remove it; keep `text` in logs/. DVC's run cache knows what was built."""
    kept = Path("logs", "-".join(path.parts))
    write_text(kept, text)
    committed = subprocess.run(["git", "show", f"HEAD:./{path}"], capture_output=True, text=True)
    if committed.returncode == 0 and whole(committed.stdout):
        write_text(path, committed.stdout)
        now = "it is as in the last commit again"
    else:
        path.unlink()
        now = "it is removed, as no commit has it"
    log.warning("%s was cut off, as DVC was killed while it wrote it: %s, and %s has what it was", path, now, kept)


def whole(text: str) -> bool:
    """Whether DVC can read a lock file of this text. What a file lacks that was cut between entries is built again."""
    try:
        lock = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError:
        return False
    stages = lock.get("stages", {}) if isinstance(lock, dict) and lock.get("schema") == "2.0" else None
    return isinstance(stages, dict) and all(map(_is_stage, stages.values()))


def _is_stage(stage: Any) -> bool:
    if not isinstance(stage, dict) or not isinstance(stage.get("cmd"), str | list):
        return False
    entries, params = [stage.get(key, []) for key in ("deps", "outs")], stage.get("params", {})
    return (
        stage.keys() <= {"cmd", "deps", "outs", "params"}
        and all(isinstance(part, list) and all(map(_is_entry, part)) for part in entries)
        and isinstance(params, dict)
        and all(isinstance(keys, dict) for keys in params.values())
    )


def _is_entry(entry: Any) -> bool:
    kinds = {"path": str, "hash": str, "md5": str | int | None, "size": int, "nfiles": int, "isexec": bool}
    return (
        isinstance(entry, dict)
        and "path" in entry
        and all(key in kinds and isinstance(value, kinds[key]) for key, value in entry.items())
        and entry.get("hash", "md5") == "md5"  # DVC fails on the name of another function, such as `m`
        and len(str(entry.get("md5"))) > 2  # a shorter digest was cut off; null, which is none yet, has four letters
    )


if __name__ == "__main__":
    run(main)
