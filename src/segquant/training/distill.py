"""Distillation: a smaller student learns a larger teacher's predictions, and the labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from segquant import models
from segquant.config import Params, Phase
from segquant.data.protocols import Normalization
from segquant.data.sources import open_source
from segquant.errors import ConfigError, ModelError
from segquant.hub import locate
from segquant.training.baseline import publish, scorer
from segquant.training.data import Crops
from segquant.training.loop import Record, train
from segquant.training.losses import cross_entropy, distillation

TEXT = """`{student}`, trained further on the data below and on the predictions of `{teacher}`: {alpha} of the loss
is the KL divergence from the teacher's classes at temperature {temperature}, the rest cross-entropy with the labels."""


def make_student(params: Params, output: str | Path, checkpoint: str | Path, record: Record) -> None:
    """Train params.distill's student, and save it to the folder `output` with metrics.json and README.md.

    Raises ModelError when teacher and student do not fit one another, ConfigError when the labels are others'.
    """
    options, data = params.distill, params.data
    folders = locate(options.student), locate(options.teacher)
    student, teacher = (models.load(folder) for folder in folders)
    normalization = shared_input(student, teacher, *folders)
    source = open_source(data, data.train_split, options.images)
    classes = student.config.num_labels
    if options.alpha < 1 and classes != len(source.classes):
        raise ConfigError(
            f"{options.student} has {classes} classes and {data.source} {len(source.classes)}: it cannot learn from "
            "these labels; distill.alpha=1 does without"
        )
    device = models.device(params.eval.device)
    student.to(device).requires_grad_(True).train()
    teacher.to(device)
    validation = open_source(data, data.validation_split, options.validation_images)
    score = scorer(params, validation, validation.classes, classes, normalization)

    def samples(crop: int, first: int, length: int) -> Crops:
        return Crops(source, crop, options.scale, options.seed, first, length, params.protocol, normalization)

    def loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = teacher(images).logits
        logits = model(images).logits
        if options.alpha == 1:
            return distillation(logits, wanted, options.temperature)
        taught = distillation(logits, wanted, options.temperature, labels) if options.alpha else 0.0
        return options.alpha * taught + (1 - options.alpha) * cross_entropy(logits, labels)

    phases = (Phase(options.steps, options.crop, options.batch_size),)
    train(
        student, samples, loss, options, phases, checkpoint=Path(checkpoint),
        run=f"{options!r} on {len(source)} images of {data.source}", validate=score, record=record,
    )  # fmt: skip
    publish(
        student, output, checkpoint, score, params, options, phases, len(source), folders[0], stage="distill",
        license="other", title=f"A student of {options.teacher}", text=TEXT,
    )  # fmt: skip


def shared_input(student: nn.Module, teacher: nn.Module, *folders: str | Path) -> Normalization:
    """The normalization that both take. Raises ModelError where their classes or their inputs differ."""
    ours, theirs = student.config.num_labels, teacher.config.num_labels
    if ours != theirs:
        raise ModelError(f"teacher {folders[1]} has {theirs} classes, not the {ours} of {folders[0]}: take another")
    mine, other = (models.normalization(folder) for folder in folders)
    if mine != other:
        raise ModelError(f"teacher {folders[1]} normalizes its input by {other}, and {folders[0]} by {mine}")
    return mine
