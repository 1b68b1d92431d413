"""Look for a lock file that DVC left cut off when it was killed: every later command of DVC fails on it, and does not
say what to do.

    python -m segquant.base.locks
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from segquant.base.entry import run
from segquant.base.errors import SegquantError


def main() -> None:
    for path in sorted(path for pattern in ("dvc.lock", "*/dvc.lock") for path in Path().glob(pattern)):
        if not whole(path.read_text()):
            raise SegquantError(
                f"{path} is cut off, as DVC was killed while it wrote it: run `git checkout HEAD -- {path}`, then go on"
            )


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
        and len(str(entry.get("md5"))) > 2  # a shorter digest was cut off; null, which is none yet, has four letters
    )


if __name__ == "__main__":
    run(main)
