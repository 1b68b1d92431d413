"""Weights & Biases: one run per evaluation, training and report. No other module imports wandb."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segquant.base.config import Method, Training, Wandb, as_mapping
from segquant.base.errors import ConfigError, one_line
from segquant.base.ranks import ranks

log = logging.getLogger(__name__)


def login(wandb: Wandb) -> None:
    """Check the API key with W&B before any work, if runs go online. Raises ConfigError if W&B does not accept it."""
    if wandb.resolve() != "online" or ranks()[0]:
        return
    try:
        _client().login(verify=True)
    except Exception as error:  # wandb raises many types for a wrong key or a missing network
        reason = one_line(error)
        raise ConfigError(
            f"wandb.mode is online, but W&B does not take the key or cannot be reached ({reason}): check WANDB_API_KEY "
            "and WANDB_BASE_URL, or set wandb.mode=offline"
        ) from error


def log_evaluation(
    wandb: Wandb, name: str, recipe: Method, metrics: dict[str, Any], classes: list[dict[str, Any]]
) -> None:
    """Log a finished evaluation: the recipe as config, the metrics as summary, and a table of the `classes`.

    If W&B fails, a warning says so and nothing is raised: the evaluation is already on disk.
    """
    config = {"method": name, **as_mapping(recipe), "protocol": metrics["protocol"]}
    with _run(wandb, name, "evaluation", config) as (client, run):
        if run:
            with _tolerated("evaluation"):
                table = client.Table(columns=list(classes[0]), data=[list(row.values()) for row in classes])
                run.log({"classes": table})
                run.summary.update(metrics)


class Report(NamedTuple):
    """What a report's run holds.

    `lineage` is the run's config. `table` has a row for each method; its numbers are the summary too, as METHOD/KEY.
    `pictures` are (id, RGB uint8 (H, W, 3), {name: class ids uint8 (H, W)}): W&B shows the photograph under masks that
    a viewer turns on and off. `artifacts` are {method: (folder, metadata)}, logged by reference and not copied.
    """

    lineage: dict[str, Any]
    table: list[dict[str, Any]]
    pictures: Iterable[tuple[str, np.ndarray, dict[str, np.ndarray]]]
    classes: Sequence[str]
    artifacts: dict[str, tuple[Path, dict[str, Any]]]


def log_report(wandb: Wandb, make: Callable[[], Report]) -> None:
    """Log the report that `make` gives; `make` is not called where W&B is disabled.

    A failure of W&B or of `make` is logged as a warning and does not stop the caller.
    """
    if wandb.resolve() == "disabled":
        return
    with _tolerated("report"):
        lineage, table, pictures, classes, artifacts = make()
        with _run(wandb, "report", "report", lineage) as (client, run):
            if not run:
                return
            columns = list(table[0])
            comparison = client.Table(columns=columns, data=[[row[name] for name in columns] for row in table])
            run.log(
                {
                    "comparison": comparison,
                    "mean_iou_against_size": client.plot.scatter(
                        comparison, "size_mb", "mean_iou", "mean IoU, % over MB"
                    ),
                    "mean_iou_against_latency": client.plot.scatter(
                        comparison, "relative_latency", "mean_iou", "mean IoU, % over latency relative to float32"
                    ),
                    "loss": client.plot.bar(comparison, "method", "loss_points", "points of mean IoU lost"),
                    **{
                        f"pictures/{name}": _overlay(client, name, photo, maps, classes)
                        for name, photo, maps in pictures
                    },
                }
            )
            for row in table:
                run.summary.update({f"{row['method']}/{key}": value for key, value in row.items() if key != "method"})
            for method, (folder, metadata) in artifacts.items():
                artifact = client.Artifact(f"segquant-{method}", "model", metadata=metadata)
                artifact.add_reference(folder.resolve().as_uri())
                run.log_artifact(artifact)


def _overlay(client: Any, name: str, photo: np.ndarray, maps: dict[str, np.ndarray], classes: Sequence[str]) -> Any:
    known = dict(enumerate(classes)) | {255: "not labelled"}
    seen = set().union(*(np.unique(ids).tolist() for ids in maps.values()))  # W&B keeps the labels of each mask apart
    labels = {number: known.get(number, "none of them") for number in sorted(seen)}
    masks = {key: {"mask_data": ids, "class_labels": labels} for key, ids in maps.items()}
    return client.Image(photo, caption=name, masks=masks)


@contextmanager
def training(wandb: Wandb, name: str, options: Training) -> Iterator[Callable[..., None]]:
    """Open a run for a training; yields `record(step, values, pictures)`, which logs curves and RGB arrays by name.

    If W&B fails, a warning says so and the training continues.
    """
    with _run(wandb, name, "training", asdict(options)) as (client, run):

        def record(step: int, values: dict[str, float], pictures: dict[str, Any]) -> None:
            if run:
                with _tolerated("training"):
                    predictions = {f"predictions/{name}": client.Image(array) for name, array in pictures.items()}
                    run.log({**values, **predictions}, step=step)

        yield record


@contextmanager
def _run(wandb: Wandb, name: str, kind: str, config: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield wandb and a new run; the run is None if W&B is disabled or fails, or on torchrun's ranks above 0."""
    mode = wandb.resolve()
    client = run = None
    if mode != "disabled" and not ranks()[0]:
        with _tolerated(kind):
            client = _client()
            run = client.init(
                mode=mode,
                dir=".",
                project=wandb.project,
                name=name,
                group=_group(),
                config=config,
                job_type={"evaluation": "evaluate", "training": "train", "report": "report"}[kind],
                settings=client.Settings(console="off", x_disable_stats=True),
            )
    code = 1  # unless the work ends, W&B shows the run as failed
    try:
        yield client, run
        code = 0
    finally:
        if run:
            with _tolerated(kind):
                run.finish(exit_code=code)
                client.teardown()  # finish() may return before W&B's service has written an offline run's file
                log.log(logging.INFO if mode == "online" else logging.DEBUG, "W&B run %s (%s)", run.id, mode)


def _client() -> Any:
    """Import wandb, so that it prints its errors only."""
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    return wandb


@contextmanager
def _tolerated(kind: str) -> Iterator[None]:
    """Turn a failure into a warning: a tracker must not stop the work that it tracks."""
    try:
        yield
    except Exception as error:
        log.warning("W&B could not log this %s (%s)", kind, error)


def _group() -> str:
    """The name of the DVC experiment, otherwise the commit."""
    if os.environ.get("DVC_EXP_NAME"):
        return os.environ["DVC_EXP_NAME"]
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return head.stdout.strip() or "no-commit"
