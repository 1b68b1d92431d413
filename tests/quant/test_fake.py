"""Training computes with the stored weights, to the last bit, and gradients reach codes, scales and zeros."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torchao.quantization import IntxUnpackedToInt8Tensor

from segquant.base.config import Ranges
from segquant.quant import fake
from segquant.quant.codes import Codes, Grid, dequantize
from segquant.quant.gptq import quantize_weight
from segquant.quant.ranges import round_ranges
from segquant.quant.tensors import as_float16


def layer(rows=6, columns=16, bits=2, group=8, seed=0, ranges=None):
    torch.manual_seed(seed)
    linear = nn.Linear(columns, rows)
    grid = Grid(bits, group, ranges)
    codes = quantize_weight(linear.weight.detach(), torch.eye(columns), grid)
    return linear, codes, fake.attach(linear, codes, grid)


def stored(codes, bits):
    group = codes.codes.shape[1] // codes.scale.shape[1]
    return IntxUnpackedToInt8Tensor(
        codes.codes, codes.scale, codes.zero, getattr(torch, f"int{bits}"), (1, group), torch.float32, None
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_an_attached_layer_computes_with_its_codes(bits):
    linear, codes, _ = layer(bits=bits)
    assert torch.equal(linear.weight, dequantize(codes))
    assert torch.equal(linear.weight, stored(codes, bits).dequantize())


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    ranges=st.none() | st.builds(Ranges, st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 2**31),
    size=st.floats(0.0, 3.0),
)
@settings(deadline=None)
def test_training_computes_with_the_weights_that_are_stored(bits, ranges, seed, size):
    linear, _, fake_codes = layer(bits=bits, ranges=ranges)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (linear.parametrizations.weight.original, fake_codes.stretch, fake_codes.zero):
            parameter += size * torch.randn(parameter.shape, generator=generator)
    computed = linear.weight.detach().clone()
    codes = fake.detach(linear)
    assert codes.codes.int().min() >= -(2 ** (bits - 1)) and codes.codes.int().max() < 2 ** (bits - 1)
    assert torch.equal(computed, stored(codes, bits).dequantize())
    assert torch.equal(computed, linear.weight) and not parametrize.is_parametrized(linear)
    for values, rounded in zip(codes[1:], round_ranges(*codes[1:], bits, ranges), strict=True):
        assert torch.equal(values, rounded)


def test_codes_start_in_the_middle_of_their_bins():
    linear, codes, _ = layer()
    assert torch.equal(linear.parametrizations.weight.original.to(torch.int8), codes.codes)


def test_gradients_pass_through_rounding_unchanged():
    linear, codes, fake_codes = layer()
    weights = torch.randn_like(linear.weight)
    (linear.weight * weights).sum().backward()
    grouped, scale = weights.unflatten(1, (2, -1)), codes.scale[..., None]
    assert torch.allclose(linear.parametrizations.weight.original.grad, (grouped * scale).flatten(1))
    assert torch.allclose(fake_codes.zero.grad, -(grouped * scale).sum(2))
    values = dequantize(codes).unflatten(1, (2, -1))
    assert torch.allclose(fake_codes.stretch.grad, (grouped * values).sum(2), atol=1e-6)  # d scale / d stretch = scale


def test_a_code_out_of_range_moves_only_back():
    linear, _, fake_codes = layer()
    original = linear.parametrizations.weight.original
    with torch.no_grad():
        original[0, 0], original[0, 1] = fake_codes.high + 0.7, fake_codes.low - 0.7
    for sign, moves in ((1.0, (True, False)), (-1.0, (False, True))):  # descent moves the codes down, then up
        original.grad = None
        (sign * linear.weight).sum().backward()
        assert (bool(original.grad[0, 0]), bool(original.grad[0, 1])) == moves
        assert original.grad[0, 2:].all()


def test_a_depthwise_convolution_computes_with_its_int8_codes():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, groups=4)
    weight = conv.weight.detach().clone()
    parametrize.register_parametrization(conv, "weight", fake.FakeInt8())
    quantized = fake.int8(weight)
    quantized.scale.copy_(as_float16(quantized.scale))
    assert torch.equal(conv.weight, quantized.dequantize())
    conv.weight.sum().backward()
    assert torch.equal(conv.parametrizations.weight.original.grad, torch.ones_like(weight))


def test_a_layer_with_one_group_attaches():
    linear, codes, _ = layer(rows=3, columns=7, group=7)
    assert isinstance(codes, Codes) and torch.equal(linear.weight, dequantize(codes))
