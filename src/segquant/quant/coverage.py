"""Choose the layers to quantize, and rewrite dense convolutions as Linear layers.

torchao quantizes Linear layers only, which hold 65 % of a SegFormer-B0's weights. A convolution with one group is
exactly a matrix product over unfolded patches; rewriting these puts 98.7 % of the weights into Linear layers.
Convolutions with groups (depthwise ones, 1.1 %) are quantized in place, at 8 bits a weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import nn

from segquant.base.errors import ConfigError


class LinearConv2d(nn.Module):
    """A dense Conv2d that applies `linear` to unfolded patches: (B, C, H, W) to (B, C', H', W')."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.kernel_size, self.stride = conv.kernel_size, conv.stride
        self.padding, self.dilation = conv.padding, conv.dilation
        weight = conv.weight.detach().flatten(1)  # F.unfold's order: channel, row, column
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=conv.bias is not None, device="meta")
        self.linear.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
        self.linear.bias = conv.bias

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (C', C * rows * columns) of `linear`: some backbones ask their patch embedding for its dtype."""
        return self.linear.weight

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
    """Names of the convolutions that can be rewritten: one group, zero padding."""
    return [name for name, m in model.named_modules() if _is_dense(m)]


def rewrite(model: nn.Module, names: Iterable[str]) -> None:
    """Replace the named convolutions with LinearConv2d, in place."""
    for name in names:
        model.set_submodule(name, LinearConv2d(model.get_submodule(name)))


def choose(model: nn.Module, layers: str | Iterable[str]) -> list[str]:
    """Names of the layers to quantize: `all` (Linear and Conv2d), `linear`, or every layer that matches a pattern.

    Raises ConfigError for a pattern that matches no layer.
    """
    names = [name for name, m in model.named_modules() if _is_plain(m)]
    if layers == "all":
        return names
    if layers == "linear":
        return [name for name in names if isinstance(model.get_submodule(name), nn.Linear)]
    chosen = set().union(*(match(pattern, names, "layers") for pattern in layers))
    return [name for name in names if name in chosen]


def match(pattern: str, names: list[str], key: str) -> list[str]:
    """The `names` that match a shell pattern; `key` names the setting. Raises ConfigError when there is no match."""
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches:
        example = f": choose from names such as {names[0]} and {names[-1]}" if names else ""
        raise ConfigError(f"{key} has '{pattern}', which matches none of the {len(names)} available layers{example}")
    return matches


def _is_plain(module: nn.Module) -> bool:
    """Whether a layer computes what its class of PyTorch does: DPT's hybrid backbone standardizes weights and pads."""
    for kind, methods in ((nn.Linear, ("forward",)), (nn.Conv2d, ("forward", "_conv_forward"))):
        if isinstance(module, kind):
            return all(getattr(type(module), method) is getattr(kind, method) for method in methods)
    return False


def _is_dense(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and _is_plain(module)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
