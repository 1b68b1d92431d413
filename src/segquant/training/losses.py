"""Training losses: cross-entropy with labels, and distillation from a teacher."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from segquant.data.images import IGNORE


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy of logits (B, C, h, w) with labels int64 (B, H, W), weighted by class; 255 is ignored.

    It uses every second pixel of the labels in both directions: with 150 classes the full size would cost as much time
    as the model itself, and objects two pixels wide still count. Zero if no pixel is labelled.
    """
    half = labels[:, ::2, ::2]
    if bool((half == IGNORE).all()):
        return logits.sum() * 0.0
    return F.cross_entropy(_at(logits, half.shape[-2:]), half, weights, ignore_index=IGNORE)


def distillation(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over pixels of the KL divergence of the student's classes from the teacher's, times temperature squared.

    G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531.
    Logits are (B, C, h, w); the student's are interpolated to the teacher's size. Pixels with label 255 in `labels`
    (B, H, W) do not count; without labels every pixel counts.
    """
    student, teacher = _at(student, teacher.shape[-2:]) / temperature, teacher.float() / temperature
    divergence = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    if labels is None:
        return divergence.mean() * temperature**2
    labelled = F.interpolate(labels[:, None].float(), divergence.shape[-2:], mode="nearest-exact")[:, 0] != IGNORE
    return (divergence * labelled).sum() / labelled.sum().clamp_min(1) * temperature**2


def towards(teacher: nn.Module | None) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss (model, images, labels) of a model that learns from `teacher`, or from labels if `teacher` is None."""

    def from_teacher(model: nn.Module, images: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = teacher(images).logits
        return distillation(model(images).logits, teacher_logits)

    def from_labels(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(images).logits, labels)

    return from_teacher if teacher else from_labels


def _at(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Logits in float32, interpolated to `size` (H, W)."""
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
