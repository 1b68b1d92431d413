"""Weights that are quantized on their way into their layers, so that training moves what will be stored.

A layer's parameter becomes its codes, as real numbers in units of one code; what the layer sees is what the
artifact will hold: (round(code) - zero) * scale, with scale and zero as float16 holds them. Gradients pass
rounding as if it were not there (Y. Bengio et al., "Estimating or Propagating Gradients Through Stochastic
Neurons", 2013, https://arxiv.org/abs/1308.3432), and so train codes, and scales and zeros too (S. Esser et al.,
"Learned Step Size Quantization", 2019, https://arxiv.org/abs/1902.08153). In units of codes one learning rate
fits every layer, and a range that moves takes its codes along.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize
from torchao.quantization import IntxUnpackedToInt8Tensor

from segquant.quant.gptq import Codes, bounds
from segquant.quant.tensors import as_float16


class FakeCodes(nn.Module):
    """From real codes (rows, columns) to the weight that their integers stand for; scale and zero (rows, groups)."""

    def __init__(self, codes: Codes, bits: int):
        super().__init__()
        self.low, self.high = bounds(bits)
        self.register_buffer("start", codes.scale.clone())
        self.stretch = nn.Parameter(torch.zeros_like(codes.scale))  # the scale is start * exp(stretch)
        self.zero = nn.Parameter(codes.zero.clone())

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        scale, zero = (_straight(values, as_float16(values.detach())) for values in self.ranges())
        grouped = _straight(codes, self.integers(codes)).unflatten(1, (scale.shape[1], -1))
        return ((grouped - zero[..., None]) * scale[..., None]).flatten(1)

    def ranges(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.start * self.stretch.exp(), self.zero

    def integers(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.detach().round().clamp(self.low, self.high)

    def right_inverse(self, codes: torch.Tensor) -> torch.Tensor:
        return codes


class FakeInt8(nn.Module):
    """A convolution's weight as int8 codes with one scale an output channel give it back."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        stored = int8(weight)
        stored.scale.copy_(as_float16(stored.scale))
        return _straight(weight, stored.dequantize())


def int8(weight: torch.Tensor) -> IntxUnpackedToInt8Tensor:
    """A weight (channels, ...) as int8 codes, one symmetric scale a channel."""
    return IntxUnpackedToInt8Tensor.from_hp(weight.detach(), (1, *weight.shape[1:]), torch.int8)


def attach(linear: nn.Linear, codes: Codes, bits: int) -> FakeCodes:
    """Have `linear` compute with `codes`, and train them.

    They start in the middle of their bins. (Nearest to the layer's own weight inside them, thousands lie at an edge,
    and flip together in the first steps.)
    """
    linear.weight = nn.Parameter(codes.codes.to(codes.scale.dtype))
    fake = FakeCodes(codes, bits)
    parametrize.register_parametrization(linear, "weight", fake, unsafe=True)
    original = linear.parametrizations.weight.original

    def stay(gradient: torch.Tensor) -> torch.Tensor:
        """Nothing for what is past the last code, where it would go further and be long in coming back."""
        past = (original > fake.high + 0.5) & (gradient < 0) | (original < fake.low - 0.5) & (gradient > 0)
        return gradient.masked_fill(past, 0.0)

    original.register_hook(stay)
    return fake


def detach(linear: nn.Linear) -> Codes:
    """The codes of a layer that `attach` was called on, which is left with the weight that they stand for."""
    fake, codes = linear.parametrizations.weight[0], linear.parametrizations.weight.original
    scale, zero = (as_float16(values.detach()) for values in fake.ranges())
    found = Codes(fake.integers(codes).to(torch.int8), scale, zero)
    parametrize.remove_parametrizations(linear, "weight")
    return found


def _straight(values: torch.Tensor, instead: torch.Tensor) -> torch.Tensor:
    """`instead`, to the last bit, with the gradient of `values`."""
    return instead + (values - values.detach())
