"""Distillation: a smaller student learns from a larger teacher's predictions and from labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from segquant import models
from segquant.base.config import BY_POSITION, Params, Phase
from segquant.base.errors import ConfigError, ModelError
from segquant.base.hub import locate
from segquant.data.label_map import class_names, match_classes, same_classes
from segquant.data.preprocessing import Preprocessing, read_preprocessing
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
    preprocessing = shared_input(student, teacher, *folders)
    if options.alpha < 1:
        source = open_source(data, data.train_split, options.images)
        as_labelled = data.label_map == BY_POSITION or (
            data.label_map is None and same_classes(class_names(student.config), source.classes)
        )
        check_labels(options.student, student, data.source, source.classes, as_labelled)
    else:
        source = open_images(data, data.train_split, options.images)
    crop = crop_size(options.crop, params.protocol, options.scale)
    device = models.device(params.eval.device)
    student.to(device).requires_grad_(True).train()
    fuse_early(teacher.to(device))
    validation = open_source(data, data.validation_split, options.validation_images)
    label_map = match_classes(class_names(student.config), validation.classes, data.label_map)
    score = scorer(params, validation, validation.classes, preprocessing, label_map)

    def samples(crop: int, first: int, length: int) -> Crops:
        return Crops(source, crop, options.scale, options.seed, first, length, params.protocol, preprocessing)

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


def check_labels(name: str, model: nn.Module, data: str, data_classes: Sequence[str], as_labelled: bool) -> None:
    """Raise ConfigError unless the model's classes are those of the labels of `data`, as `as_labelled` says."""
    classes = model.config.num_labels
    if not as_labelled or classes != len(data_classes):
        others = len(data_classes) if classes != len(data_classes) else "others, or in another order"
        raise ConfigError(
            f"{name} has {classes} classes and {data} {others}: it cannot learn from these labels; train on "
            "a teacher alone, without labels (distill.alpha: 1, or teacher: float32 in a recipe's train section)"
        )


def shared_input(student: nn.Module, teacher: nn.Module, *folders: str | Path) -> Preprocessing:
    """The preprocessing of student and teacher, whose `folders` are given in this order.

    Raises ModelError if their classes or their preprocessings differ.
    """
    student_folder, teacher_folder = folders
    student_classes, teacher_classes = class_names(student.config), class_names(teacher.config)
    if not same_classes(student_classes, teacher_classes):
        if len(student_classes) != len(teacher_classes):
            problem = f"has {len(teacher_classes)} classes, not the {len(student_classes)} of {student_folder}"
        else:
            problem = f"has other classes than {student_folder}, or in another order"
        raise ModelError(f"teacher {teacher_folder} {problem}: take another teacher")
    student_input, teacher_input = read_preprocessing(student_folder), read_preprocessing(teacher_folder)
    if student_input != teacher_input:
        raise ModelError(
            f"teacher {teacher_folder} takes its pixels as {teacher_input}, and {student_folder} as "
            f"{student_input}: take another teacher"
        )
    return student_input
