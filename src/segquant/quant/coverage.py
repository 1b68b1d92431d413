"""Dense convolutions as Linear layers, so that what quantizes Linear quantizes the whole model.

torchao's configurations take Linear only, which is 65 % of a SegFormer-B0. A convolution with one group
is a matrix product over unfolded patches, exactly; rewritten so, 98.7 % are in Linear layers. Depthwise
convolutions (1.1 %) stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn


class LinearConv2d(nn.Module):
    """A dense Conv2d computed by `linear` over patches: (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation = conv.padding, conv.dilation
        weight = conv.weight.detach().flatten(1)  # unfold's order: channel, row, column
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=conv.bias is not None, device="meta")
        self.linear.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        self.linear.bias = conv.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                inputs.shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        if self.kernel_size == self.stride == (1, 1) and self.padding == (0, 0):
            patches = inputs.flatten(2)
        else:
            patches = F.unfold(inputs, self.kernel_size, self.dilation, self.padding, self.stride)
        outputs = self.linear(patches.transpose(1, 2))
        return outputs.transpose(1, 2).unflatten(2, (height, width))


def dense_convs(model: nn.Module) -> list[str]:
    """Names of the convolutions that can be rewritten: one group, zeros as padding."""
    return [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Conv2d) and m.groups == 1 and m.padding_mode == "zeros" and not isinstance(m.padding, str)
    ]


def rewrite(model: nn.Module, names: Iterable[str]) -> None:
    """Replace the named convolutions by LinearConv2d in place."""
    for name in names:
        model.set_submodule(name, LinearConv2d(model.get_submodule(name)))
