"""Distillation: a smaller student learns from a larger teacher's predictions and from labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from segquant import models
from segquant.base.config import Params, Phase
from segquant.base.errors import ConfigError, ModelError
from segquant.base.hub import locate
from segquant.data.label_map import load_label_map
from segquant.data.protocols import Normalization
from segquant.data.sources import open_images, open_source
from segquant.quant.head import fuse_early
from segquant.training.baseline import publish, scorer, training_name
from segquant.training.data import Crops, crop_size
from segquant.training.loop import Record, decayed, train
from segquant.training.losses import cross_entropy, distillation

TEXT = """`{student}`, trained further on the data below and on the predictions of `{teacher}`: {alpha} of the loss
is the KL divergence from the teacher's classes at temperature {temperature}, the rest cross-entropy with the labels."""


def make_student(params: Params, output: str | Path, checkpoint: str | Path, record: Record) -> None:
    """Train the student of params.distill, and save it to the folder `output` with metrics.json and README.md.

    Raises ModelError if teacher and student differ in classes or input, ConfigError if the labels have other classes
    than the student.
    """
    options, data = params.distill, params.data
    folders = locate(options.student), locate(options.teacher)
    student, teacher = (models.load(folder) for folder in folders)
    normalization = shared_input(student, teacher, *folders)
    classes = student.config.num_labels
    if options.alpha < 1:
        source = open_source(data, data.train_split, options.images)
        check_labels(options.student, classes, data.source, len(source.classes), bool(data.label_map))
    else:
        source = open_images(data, data.train_split, options.images)
    crop = crop_size(options.crop, params.protocol, options.scale)
    device = models.device(params.eval.device)
    student.to(device).requires_grad_(True).train()
    fuse_early(teacher.to(device))
    validation = open_source(data, data.validation_split, options.validation_images)
    label_map = load_label_map(data.label_map, classes, validation.classes)
    score = scorer(params, validation, validation.classes, normalization, label_map)

    def samples(crop: int, first: int, length: int) -> Crops:
        return Crops(source, crop, options.scale, options.seed, first, length, params.protocol, normalization)

    def loss(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model(images).logits
        total = logits.new_zeros(())
        if options.alpha > 0:
            with torch.no_grad():
                teacher_logits = teacher(images).logits
            known_labels = labels if source.classes else None  # without labels every pixel is 255
            total = total + options.alpha * distillation(logits, teacher_logits, options.temperature, known_labels)
        if options.alpha < 1:
            total = total + (1 - options.alpha) * cross_entropy(logits, labels)
        return total

    phases = (Phase(options.steps, crop, options.batch_size),)
    train(
        student,
        samples,
        loss,
        options,
        phases,
        decayed(student, options.weight_decay),
        checkpoint=Path(checkpoint),
        run=training_name(params, options, *folders),
        validate=score,
        record=record,
    )
    publish(
        student,
        output,
        checkpoint,
        score,
        params,
        options,
        phases,
        len(source),
        folders[0],
        stage="distill",
        license="other",
        title=f"A student of {options.teacher}",
        text=TEXT,
    )


def check_labels(model: str, model_classes: int, data: str, data_classes: int, mapped: bool) -> None:
    """Raise ConfigError unless the classes of `model` are those of the labels of `data`.

    `mapped` says that a label map leads from the model's classes to those of the data: then they differ, even if they
    are equally many.
    """
    if mapped or model_classes != data_classes:
        others = "others, as there is a label map" if mapped else data_classes
        raise ConfigError(
            f"{model} has {model_classes} classes and {data} {others}: it cannot learn from these labels; train on "
            "a teacher alone, without labels (distill.alpha: 1, or teacher: float32 in a recipe's train section)"
        )


def shared_input(student: nn.Module, teacher: nn.Module, *folders: str | Path) -> Normalization:
    """The input normalization of student and teacher, whose `folders` are given in this order.

    Raises ModelError if their numbers of classes or their normalizations differ.
    """
    student_folder, teacher_folder = folders
    student_classes, teacher_classes = student.config.num_labels, teacher.config.num_labels
    if student_classes != teacher_classes:
        raise ModelError(
            f"teacher {teacher_folder} has {teacher_classes} classes, not the {student_classes} of {student_folder}: "
            "take another teacher"
        )
    student_input, teacher_input = models.normalization(student_folder), models.normalization(teacher_folder)
    if student_input != teacher_input:
        raise ModelError(
            f"teacher {teacher_folder} normalizes its input by {teacher_input}, and {student_folder} by "
            f"{student_input}: take another teacher"
        )
    return student_input
