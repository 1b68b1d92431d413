"""Compute SegFormer's decode head with its matrix products before the upsampling, which halves the model's work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from segquant.quant.tensors import is_quantized, quantizes_activations


class EarlyFuse(nn.Module):
    """Compute a decode head's logits with fewer operations.

    The head projects each stage's map to D channels, upsamples all maps to the largest, concatenates them and fuses
    4 D channels to D by a 1x1 convolution and batch normalization. All these steps are linear, and a matrix product
    over channels commutes with an interpolation over positions. So each stage's projection, its part of the fusion and
    the normalization become one matrix, applied at the stage's own size. Results differ by float32 rounding only.

    1x1 convolutions are matrix products here, because oneDNN's convolution rounds differently for each number of
    threads. The maps lie in memory with their channels last, where a CPU interpolates them up to ten times as fast.
    """

    def __init__(self, head: SegformerDecodeHead):
        super().__init__()
        weights, bias = fused_products(head, torch.float64)
        self.weights = nn.ParameterList(nn.Parameter(w.float(), False) for w in weights)
        self.bias = nn.Parameter(bias.float(), False)
        self.classifier = head.classifier

    def products(self) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
        """One matrix (D, channels) per stage, and the bias (D,)."""
        return self.weights, self.bias

    @staticmethod
    def pointwise(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The 1x1 convolution with `weight` (D, C) of maps (B, C, h, w): (B, D, h, w), channels last in memory."""
        positions = maps.permute(0, 2, 3, 1)  # (B, h, w, C)
        result = positions.reshape(-1, maps.shape[1]) @ weight.T
        if bias is not None:
            result.add_(bias)
        return result.view(*positions.shape[:3], -1).permute(0, 3, 1, 2)

    def forward(self, encoder_hidden_states: tuple[torch.Tensor, ...], **_kwargs) -> torch.Tensor:
        largest, *others = encoder_hidden_states
        (first, *rest), bias = self.products()
        fused = self.pointwise(largest, first, bias)
        for state, weight in zip(others, rest, strict=True):
            fused += F.interpolate(
                self.pointwise(state, weight), largest.shape[2:], mode="bilinear", align_corners=False
            )
        fused.relu_()
        if isinstance(self.classifier, nn.Conv2d):
            return self.pointwise(fused, self.classifier.weight.flatten(1), self.classifier.bias)
        return self.classifier(fused)


class LiveFuse(EarlyFuse):
    """EarlyFuse for a head in training: it computes the matrices from the head at every call, with gradients."""

    def __init__(self, head: SegformerDecodeHead):
        nn.Module.__init__(self)
        self.head = head

    def products(self) -> tuple[Sequence[torch.Tensor], torch.Tensor]:
        weight = self.head.batch_norm.weight
        with torch.autocast(weight.device.type, enabled=False):
            return fused_products(self.head, weight.dtype)

    @staticmethod
    def pointwise(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The same, channels first in memory. A step takes up to 7 % longer, and its gradients are those with which the
        codes in models/trained were trained: a repeated training gives the same ones."""
        result = torch.matmul(weight, maps.flatten(2)).unflatten(2, maps.shape[2:])
        return result if bias is None else result.add_(bias[:, None, None])

    @property
    def classifier(self) -> nn.Module:
        return self.head.classifier


@contextmanager
def fused_live(model: nn.Module) -> Iterator[nn.Module]:
    """Replace SegFormer's head, if `model` has one, with a LiveFuse for a while; BatchNorm computes as in eval mode."""
    head = model.decode_head if has_segformers_head(model) else None
    if head:
        model.decode_head = LiveFuse(head)
    try:
        yield model
    finally:
        if head:
            model.decode_head = head


def fuse_early(model: nn.Module) -> nn.Module:
    """Replace the decode head with an EarlyFuse, in place, if that changes nothing but rounding; return `model`.

    This needs a SegFormer head that computes in float32: neither in bfloat16 nor with quantized activations.
    """
    if has_segformers_head(model):
        head = model.decode_head
        layers = [head.linear_fuse, *(projection.proj for projection in head.linear_projections)]
        weights = [layer.weight for layer in layers]
        if all(w.dtype == torch.float32 and not quantizes_activations(w) for w in weights):
            model.decode_head = EarlyFuse(head)
    return model


def has_segformers_head(model: nn.Module) -> bool:
    """Whether `model` has SegFormer's head. `reshape_last_stage: false`, in no published model, changes the layout."""
    head = getattr(model, "decode_head", None)
    return isinstance(head, SegformerDecodeHead) and head.config.reshape_last_stage


def fused_products(head: SegformerDecodeHead, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The matrix (D, channels) that multiplies each stage's map, and the bias (D,) that is added to the sum."""
    norm = head.batch_norm
    scale = norm.weight.to(dtype) / (norm.running_var.to(dtype) + norm.eps).sqrt()
    bias = norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale
    fuse = scale[:, None] * _matrix(head.linear_fuse, dtype)
    parts = fuse.split(fuse.shape[1] // len(head.linear_projections), 1)
    weights = []
    # The fusion's input begins with the last stage.
    for projection, part in zip(head.linear_projections, reversed(parts), strict=True):
        weights.append(part @ _matrix(projection.proj, dtype))
        bias = bias + part @ projection.proj.bias.to(dtype)
    return weights, bias


def _matrix(layer: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a Linear or a 1x1 convolution as (outputs, inputs)."""
    weight = layer.weight
    return (weight.dequantize() if is_quantized(weight) else weight).to(dtype).flatten(1)
