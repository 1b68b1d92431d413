"""What training computes with is what is stored, to the last bit, and gradients move what they should."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torchao.quantization import IntxUnpackedToInt8Tensor

from segquant.quant import fake
from segquant.quant.gptq import Codes, dequantize, quantize_weight
from segquant.quant.tensors import as_float16


def layer(rows=6, columns=16, bits=2, group=8, seed=0):
    torch.manual_seed(seed)
    linear = nn.Linear(columns, rows)
    codes = quantize_weight(linear.weight.detach(), torch.eye(columns), bits, group)
    return linear, codes, fake.attach(linear, codes, bits)


def stored(codes, bits):
    group = codes.codes.shape[1] // codes.scale.shape[1]
    return IntxUnpackedToInt8Tensor(
        codes.codes, codes.scale, codes.zero, getattr(torch, f"int{bits}"), (1, group), torch.float32, None
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_attached_a_layer_computes_with_the_codes_it_was_given(bits):
    linear, codes, _ = layer(bits=bits)
    assert torch.equal(linear.weight, dequantize(codes))
    assert torch.equal(linear.weight, stored(codes, bits).dequantize())


@given(bits=st.sampled_from([2, 3, 4, 8]), seed=st.integers(0, 2**31), size=st.floats(0.0, 3.0))
def test_wherever_training_takes_it_what_is_computed_with_is_what_is_stored(bits, seed, size):
    linear, _, one = layer(bits=bits)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (linear.parametrizations.weight.original, one.stretch, one.zero):
            parameter += size * torch.randn(parameter.shape, generator=generator)
    computed = linear.weight.detach().clone()
    codes = fake.detach(linear)
    assert codes.codes.int().min() >= -(2 ** (bits - 1)) and codes.codes.int().max() < 2 ** (bits - 1)
    assert torch.equal(computed, stored(codes, bits).dequantize())
    assert torch.equal(computed, linear.weight) and not parametrize.is_parametrized(linear)
    for values in (codes.scale, codes.zero):
        assert torch.equal(values, as_float16(values))


def test_codes_start_in_the_middle_of_their_bins():
    linear, codes, _ = layer()
    assert torch.equal(linear.parametrizations.weight.original.to(torch.int8), codes.codes)


def test_gradients_pass_rounding_as_if_it_were_not_there():
    linear, codes, one = layer()
    wanted = torch.randn_like(linear.weight)
    (linear.weight * wanted).sum().backward()
    grouped, scale = wanted.unflatten(1, (2, -1)), codes.scale[..., None]
    assert torch.allclose(linear.parametrizations.weight.original.grad, (grouped * scale).flatten(1))
    assert torch.allclose(one.zero.grad, -(grouped * scale).sum(2))
    values = dequantize(codes).unflatten(1, (2, -1))
    assert torch.allclose(one.stretch.grad, (grouped * values).sum(2), atol=1e-6)  # d scale / d stretch = scale


def test_a_code_past_the_last_one_goes_no_further_but_may_come_back():
    linear, _, one = layer()
    original = linear.parametrizations.weight.original
    with torch.no_grad():
        original[0, 0], original[0, 1] = one.high + 0.7, one.low - 0.7
    for sign, moves in ((1.0, (True, False)), (-1.0, (False, True))):  # of descent: down, then up
        original.grad = None
        (sign * linear.weight).sum().backward()
        assert (bool(original.grad[0, 0]), bool(original.grad[0, 1])) == moves
        assert original.grad[0, 2:].all()


def test_a_depthwise_convolution_computes_with_its_int8_codes():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, groups=4)
    own = conv.weight.detach().clone()
    parametrize.register_parametrization(conv, "weight", fake.FakeInt8())
    held = fake.int8(own)
    held.scale.copy_(as_float16(held.scale))
    assert torch.equal(conv.weight, held.dequantize())
    conv.weight.sum().backward()
    assert torch.equal(conv.parametrizations.weight.original.grad, torch.ones_like(own))


def test_a_layer_of_one_group_and_codes_of_another_dtype_attach_too():
    linear, codes, _ = layer(rows=3, columns=7, group=7)
    assert isinstance(codes, Codes) and torch.equal(linear.weight, dequantize(codes))
