"""Fake quantization: layers compute with quantized weights while training moves the underlying real numbers.

A layer's parameter holds its codes as real numbers. The layer computes with the weight that the artifact will store:
(round(code) - zero) * scale, with scale and zero as they are stored (quant/ranges.py). Gradients pass through the
rounding unchanged (the straight-through estimator: Y. Bengio et al., "Estimating or Propagating Gradients Through
Stochastic Neurons", 2013, https://arxiv.org/abs/1308.3432), so they train codes, scales and zeros (S. Esser et al.,
"Learned Step Size Quantization", 2019, https://arxiv.org/abs/1902.08153). With parameters in units of
codes, one learning rate fits every layer, and a change of a range moves its weights along.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize
from torchao.quantization import IntxUnpackedToInt8Tensor

from segquant.quant.codes import Codes, Grid, bounds
from segquant.quant.ranges import round_ranges
from segquant.quant.tensors import as_float16


class FakeCodes(nn.Module):
    """Map real codes (rows, columns) to the weight that their integers represent; scale and zero are (rows, groups)."""

    def __init__(self, codes: Codes, grid: Grid):
        super().__init__()
        self.grid = grid
        self.low, self.high = bounds(grid.bits)
        self.register_buffer("start", codes.scale.clone())
        self.stretch = nn.Parameter(torch.zeros_like(codes.scale))  # scale = start * exp(stretch)
        self.zero = nn.Parameter(codes.zero.clone())

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        scale, zero = map(_straight_through, self.ranges(), self.stored_ranges())
        grouped = _straight_through(codes, self.integers(codes)).unflatten(1, (scale.shape[1], -1))
        return ((grouped - zero[..., None]) * scale[..., None]).flatten(1)

    def ranges(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.start * self.stretch.exp(), self.zero

    @torch.no_grad()
    def stored_ranges(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zeros as an artifact stores them."""
        return round_ranges(*self.ranges(), self.grid.bits, self.grid.ranges)

    def integers(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.detach().round().clamp(self.low, self.high)

    def right_inverse(self, codes: torch.Tensor) -> torch.Tensor:
        return codes


class FakeInt8(nn.Module):
    """Round a convolution's weight to int8 codes with one scale per output channel."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        stored = int8(weight)
        stored.scale.copy_(as_float16(stored.scale))
        return _straight_through(weight, stored.dequantize())


def int8(weight: torch.Tensor) -> IntxUnpackedToInt8Tensor:
    """Quantize a weight (channels, ...) to int8 codes with one symmetric scale per channel."""
    return IntxUnpackedToInt8Tensor.from_hp(weight.detach(), (1, *weight.shape[1:]), torch.int8)


def attach(linear: nn.Linear, codes: Codes, grid: Grid) -> FakeCodes:
    """Make `linear` compute with trainable `codes`; return the module that holds the scales and zeros.

    The codes start in the middle of their bins. If they started at the point nearest to the float weight instead,
    thousands would lie at an edge and flip together in the first steps.
    """
    linear.weight = nn.Parameter(codes.codes.to(codes.scale.dtype))
    fake = FakeCodes(codes, grid)
    parametrize.register_parametrization(linear, "weight", fake, unsafe=True)
    original = linear.parametrizations.weight.original

    def keep_in_range(gradient: torch.Tensor) -> torch.Tensor:
        """Zero the gradient that would push a code further out of range, from where it would return late."""
        outward = (original > fake.high + 0.5) & (gradient < 0) | (original < fake.low - 0.5) & (gradient > 0)
        return gradient.masked_fill(outward, 0.0)

    original.register_hook(keep_in_range)
    return fake


def detach(linear: nn.Linear) -> Codes:
    """Undo `attach`: return the layer's codes and leave it the weight that they represent."""
    fake, codes = linear.parametrizations.weight[0], linear.parametrizations.weight.original
    result = Codes(fake.integers(codes).to(torch.int8), *fake.stored_ranges())
    parametrize.remove_parametrizations(linear, "weight")
    return result


def _straight_through(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return `rounded`, to the last bit, with the gradient of `values`."""
    return rounded + (values - values.detach())
