"""Weights & Biases: one run for each evaluation and each training. The only module that imports wandb."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from segquant.config import Method, Training, Wandb
from segquant.ranks import ranks

log = logging.getLogger(__name__)


def log_evaluation(
    wandb: Wandb, name: str, recipe: Method, metrics: dict[str, Any], classes: list[dict[str, Any]]
) -> None:
    """Log one finished evaluation: config = the recipe, summary = the metrics, and the per-class table.

    A failure of W&B is logged and goes no further: the evaluation is already on disk.
    """
    config = {"method": name, **asdict(recipe), "protocol": metrics["protocol"]}
    with _run(wandb, name, "evaluation", config) as (client, run):
        if run:
            with _tolerated("evaluation"):
                run.log({"classes": client.Table(columns=list(classes[0]), data=[list(c.values()) for c in classes])})
                run.summary.update(metrics)


@contextmanager
def training(wandb: Wandb, name: str, options: Training) -> Iterator[Callable[..., None]]:
    """One run for a training: gives `record(step, values, pictures)`, which logs curves and RGB arrays by name.

    A failure of W&B is logged and does not stop the training.
    """
    with _run(wandb, name, "training", asdict(options)) as (client, run):

        def record(step: int, values: dict[str, float], pictures: dict[str, Any]) -> None:
            if run:
                with _tolerated("training"):
                    shown = {f"predictions/{name}": client.Image(array) for name, array in pictures.items()}
                    run.log({**values, **shown}, step=step)

        yield record


@contextmanager
def _run(wandb: Wandb, name: str, what: str, config: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """W&B and one run of it; (None, None) where it is disabled, fails, or another rank of torchrun logs."""
    mode = wandb.resolve()
    client = run = None
    if mode != "disabled" and not ranks()[0]:
        with _tolerated(what):
            import wandb as client

            run = client.init(
                mode=mode, dir=".", project=wandb.project, name=name, group=_group(), config=config,
                job_type={"evaluation": "evaluate", "training": "train"}[what],
                settings=client.Settings(silent=True, console="off", x_disable_stats=True),
            )  # fmt: skip
    try:
        yield client, run
    finally:
        if run:
            with _tolerated(what):
                run.finish()
                client.teardown()  # finish() may return before W&B's service has flushed an offline run's file
                log.info("W&B run %s (%s)", run.id, mode)


@contextmanager
def _tolerated(what: str) -> Iterator[None]:
    """A failure inside is a warning: a tracker must not undo what it tracks."""
    try:
        yield
    except Exception as error:
        log.warning("W&B could not log this %s (%s)", what, error)


def _group() -> str:
    """The DVC experiment's name, or the commit."""
    if os.environ.get("DVC_EXP_NAME"):
        return os.environ["DVC_EXP_NAME"]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip() or "no-commit"
