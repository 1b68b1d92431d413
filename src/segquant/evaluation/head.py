"""SegFormer's decode head with its matrix products before the upsampling instead of after: half the model's work."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from segquant.quant.coverage import LinearConv2d
from segquant.quant.tensors import is_quantized, quantizes_activations


class EarlyFuse(nn.Module):
    """A decode head's logits, computed in another order.

    The head projects each stage's map to D channels, upsamples all to the largest, puts them together and fuses
    4 D channels to D by a 1x1 convolution and batch normalization: all linear, and a matrix product over channels
    commutes with an interpolation over places. So each stage's projection, its part of the fusion and the
    normalization become one matrix, applied at the stage's own size. Same numbers but for float32's rounding.

    1x1 convolutions are matrix products here: oneDNN's convolution rounds otherwise with another number of threads.
    """

    def __init__(self, head: SegformerDecodeHead):
        super().__init__()
        norm = head.batch_norm
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        bias = norm.bias.double() - norm.running_mean.double() * scale
        fuse = scale[:, None] * _matrix(head.linear_fuse)
        parts = fuse.split(fuse.shape[1] // len(head.linear_projections), 1)
        weights = []
        for projection, part in zip(head.linear_projections, reversed(parts), strict=True):  # the last stage is first
            weights.append(part @ _matrix(projection.proj))
            bias = bias + part @ projection.proj.bias.double()
        self.weights = nn.ParameterList(nn.Parameter(w.float(), False) for w in weights)
        self.bias = nn.Parameter(bias.float(), False)
        self.classifier = head.classifier

    def forward(self, encoder_hidden_states: tuple[torch.Tensor, ...], **_kwargs) -> torch.Tensor:
        largest, *others = encoder_hidden_states
        first, *rest = self.weights
        fused = _pointwise(largest, first, self.bias)
        for state, weight in zip(others, rest, strict=True):
            fused += F.interpolate(_pointwise(state, weight), largest.shape[2:], mode="bilinear", align_corners=False)
        fused.relu_()
        if isinstance(self.classifier, nn.Conv2d):
            return _pointwise(fused, self.classifier.weight.flatten(1), self.classifier.bias)
        return self.classifier(fused)


def fuse_early(model: nn.Module) -> nn.Module:
    """`model`, its decode head an EarlyFuse where that changes rounding only, in place.

    That is where a SegFormer's head computes in float32: not in bfloat16, nor where layers quantize their inputs.
    (`reshape_last_stage: false`, which no published model has, gives maps of another layout.)
    """
    head = getattr(model, "decode_head", None)
    if isinstance(head, SegformerDecodeHead) and head.config.reshape_last_stage:
        layers = [head.linear_fuse, *(projection.proj for projection in head.linear_projections)]
        weights = [_weight(layer) for layer in layers]
        if all(w.dtype == torch.float32 and not quantizes_activations(w) for w in weights):
            model.decode_head = EarlyFuse(head)
    return model


def _pointwise(maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The 1x1 convolution of (B, C, h, w) by a weight (D, C): (B, D, h, w)."""
    product = torch.matmul(weight, maps.flatten(2)).unflatten(2, maps.shape[2:])
    return product if bias is None else product.add_(bias[:, None, None])


def _weight(layer: nn.Module) -> torch.Tensor:
    return (layer.linear if isinstance(layer, LinearConv2d) else layer).weight


def _matrix(layer: nn.Module) -> torch.Tensor:
    """The weight of a Linear or a 1x1 convolution as float64 (outputs, inputs)."""
    weight = _weight(layer)
    return (weight.dequantize() if is_quantized(weight) else weight).double().flatten(1)
