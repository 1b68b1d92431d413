"""What results were made from: model, data, commit, and the state of DVC's stages."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segquant.base.config import BY_POSITION, Params
from segquant.base.files import digest, sha256
from segquant.base.hub import weights_sha256
from segquant.base.text import shown_url


def origin(baseline: str | Path, manifest: dict[str, Any], protocol: str, label_map: str | None) -> dict[str, Any]:
    """What a figure of the float model rests on: digests of its weights, of the data and of a label map's file, and
    the protocol."""
    return {
        "model": weights_sha256(baseline),
        "data": manifest["fingerprint"],
        "protocol": protocol,
        "label_map": label_map if label_map in (None, BY_POSITION) else sha256(label_map),
    }


def lineage(params: Params, baseline: str | Path, manifest: dict[str, Any], lock: str | Path = "dvc.lock") -> dict:
    """{model: source, revision and SHA-256 of the weights; data: source and the shards' fingerprint; protocol; git:
    commit, and whether its sources differ; dvc: a digest of each stage's entry in the lock file}."""
    stages = yaml.safe_load(Path(lock).read_text())["stages"] if Path(lock).is_file() else {}
    for name in ("report", "complete"):  # which runs now, and what follows: their entries are the last run's
        stages.pop(name, None)
    # what a run does not write itself
    sources = ("src", "stages", ":(exclude)stages/dvc.lock", "params.yaml", "dvc.yaml", "data/label_maps")
    return {
        "model": {
            "source": shown_url(params.model.source),
            "revision": params.model.revision,
            "sha256": weights_sha256(baseline),
        },
        "data": {"source": params.data.source, "fingerprint": manifest["fingerprint"]},
        "protocol": params.protocol,
        "git": {"commit": _git("rev-parse", "HEAD"), "modified": bool(_git("status", "--porcelain", "--", *sources))},
        "dvc": {name: digest(entry) for name, entry in stages.items()},
    }


def artifacts(folder: str | Path, accuracy: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[Path, dict[str, Any]]]:
    """{method: (its folder, metadata)} for each method of `accuracy` that has an artifact in `folder`/METHOD.

    The metadata are the method's numbers and texts in `accuracy`, and each file's bytes and SHA-256.
    """
    artifacts = {}
    for method, metrics in accuracy.items():
        artifact = Path(folder) / method
        files = {
            path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(artifact.glob("*"))
            if path.is_file()
        }
        if files:
            numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float | str)}
            artifacts[method] = artifact, {"method": method, **numbers, "files": files}
    return artifacts


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
