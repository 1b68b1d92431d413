"""Weights & Biases: one run for each evaluation and each training. The only module that imports wandb."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from segquant.config import Recipe, Training, Wandb
from segquant.ranks import ranks

log = logging.getLogger(__name__)


def log_evaluation(
    wandb: Wandb, name: str, recipe: Recipe, metrics: dict[str, Any], classes: list[dict[str, Any]]
) -> None:
    """Log one finished evaluation: config = the recipe, summary = the metrics, and the per-class table.

    A failure of W&B is logged and goes no further: the evaluation is already on disk.
    """
    config = {"method": name, **asdict(recipe), "protocol": metrics["protocol"]}
    with _run(wandb, name, "evaluate", config) as (client, run):
        if run:
            run.log({"classes": client.Table(columns=list(classes[0]), data=[list(c.values()) for c in classes])})
            run.summary.update(metrics)


@contextmanager
def training(wandb: Wandb, name: str, options: Training) -> Iterator[Callable[..., None]]:
    """One run for a training: gives `record(step, values, pictures)`, which logs curves and RGB arrays by name.

    A failure of W&B is logged and does not stop the training.
    """
    with _run(wandb, name, "train", asdict(options)) as (client, run):

        def record(step: int, values: dict[str, float], pictures: dict[str, Any]) -> None:
            if run:
                try:
                    shown = {f"predictions/{name}": client.Image(array) for name, array in pictures.items()}
                    run.log({**values, **shown}, step=step)
                except Exception as error:  # as below
                    log.warning("W&B could not log step %d (%s)", step, error)

        yield record


@contextmanager
def _run(wandb: Wandb, name: str, kind: str, config: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """W&B and one run of it; (None, None) where it is disabled, fails, or another rank of torchrun logs."""
    mode, what = wandb.resolve(), {"evaluate": "evaluation", "train": "training"}[kind]
    if mode == "disabled" or ranks()[0]:
        yield None, None
        return
    client = run = None
    try:
        import wandb as client

        run = client.init(
            mode=mode, dir=".", project=wandb.project, name=name, group=_group(), job_type=kind, config=config,
            settings=client.Settings(silent=True, console="off", x_disable_stats=True),
        )  # fmt: skip
    except Exception as error:  # a tracker must not undo what it tracks
        log.warning("W&B could not log this %s (%s)", what, error)
    try:
        yield client, run
    finally:
        if run:
            try:
                run.finish()
                client.teardown()  # finish() may return before W&B's service has flushed an offline run's file
                log.info("W&B run %s (%s)", run.id, mode)
            except Exception as error:
                log.warning("W&B could not log this %s (%s)", what, error)


def _group() -> str:
    """The DVC experiment's name, or the commit."""
    if os.environ.get("DVC_EXP_NAME"):
        return os.environ["DVC_EXP_NAME"]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip() or "no-commit"
