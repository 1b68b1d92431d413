"""What training makes small."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from segquant.data.images import IGNORE


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy of logits (B, C, h, w) against labels (B, H, W), weighted by class, 255 ignored.

    Taken at half the label's size, every second pixel: with 150 classes the full size costs as much
    again as the model itself, and two-pixel things are still seen. Zero where nothing is labelled.
    """
    half = labels[:, ::2, ::2]
    if bool((half == IGNORE).all()):
        return logits.sum() * 0.0
    return F.cross_entropy(_at(logits, half.shape[-2:]), half, weights, ignore_index=IGNORE)


def distillation(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0, labels: torch.Tensor | None = None
) -> torch.Tensor:
    """KL divergence from the teacher's classes to the student's, per pixel, times temperature squared; the mean.

    G. Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, https://arxiv.org/abs/1503.02531.
    Logits are (B, C, h, w); the student's are brought to the teacher's size. Pixels whose labels (B, H, W) are 255
    do not count; without labels all do.
    """
    student, teacher = _at(student, teacher.shape[-2:]) / temperature, teacher.float() / temperature
    each = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    if labels is None:
        return each.mean() * temperature**2
    counted = F.interpolate(labels[:, None].float(), each.shape[-2:], mode="nearest-exact")[:, 0] != IGNORE
    return (each * counted).sum() / counted.sum().clamp_min(1) * temperature**2


def towards(teacher: nn.Module | None) -> Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss (model, images, labels) of a model that learns from `teacher`, or from labels where there is none."""

    def taught(model: nn.Module, images: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = teacher(images).logits
        return distillation(model(images).logits, wanted)

    def labelled(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(model(images).logits, labels)

    return taught if teacher else labelled


def _at(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Logits as float32 of `size`, which is (H, W)."""
    logits = logits.float()
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)
