"""Weights & Biases: one run for each evaluation. The only module that imports wandb."""

from __future__ import annotations

import logging
import os
import subprocess
from dataclasses import asdict
from typing import Any

from segquant.config import Recipe, Wandb

log = logging.getLogger(__name__)


def log_evaluation(
    wandb: Wandb, name: str, recipe: Recipe, metrics: dict[str, Any], classes: list[dict[str, Any]]
) -> None:
    """Log one finished evaluation: config = the recipe, summary = the metrics, and the per-class table.

    A failure of W&B is logged and goes no further: the evaluation is already on disk.
    """
    mode = wandb.resolve()
    if mode == "disabled":
        return
    try:
        import wandb as client

        run = client.init(
            mode=mode,
            dir=".",
            project=wandb.project,
            name=name,
            group=_group(),
            job_type="evaluate",
            config={"method": name, **asdict(recipe), "protocol": metrics["protocol"]},
            settings=client.Settings(silent=True, console="off", x_disable_stats=True),
        )
        run.log({"classes": client.Table(columns=list(classes[0]), data=[list(c.values()) for c in classes])})
        run.summary.update(metrics)
        run.finish()
        client.teardown()  # finish() may return before W&B's service has flushed an offline run's file
        log.info("W&B run %s (%s)", run.id, mode)
    except Exception as error:  # a tracker must not undo what it tracks
        log.warning("W&B could not log this evaluation (%s); the metrics are written all the same", error)


def _group() -> str:
    """The DVC experiment's name, or the commit."""
    if os.environ.get("DVC_EXP_NAME"):
        return os.environ["DVC_EXP_NAME"]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip() or "no-commit"
