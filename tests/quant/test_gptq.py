import itertools

import pytest
import torch

from segquant.quant.gptq import Codes, _round_columns, dequantize, errors, quantize_weight


def _problem(rows, columns, seed=0, samples=None):
    """A random weight and the second moment of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(samples or 4 * columns, columns, generator=generator) @ mixing
    return torch.randn(rows, columns, generator=generator), inputs.T @ inputs / len(inputs)


def _textbook(weight, hessian, scale, zero, low, high):
    """Optimal brain quantization with one order for all rows, from an explicit inverse for every column."""
    weight, hessian = weight.double().clone(), hessian.double()
    group_size = weight.shape[1] // scale.shape[1]
    left = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    codes = torch.zeros_like(weight)
    while left:
        i = left[0]
        inverse = torch.linalg.inv(hessian[left][:, left])
        s, z = scale[:, i // group_size].double(), zero[:, i // group_size].double()
        codes[:, i] = (weight[:, i] / s + z).round().clamp(low, high)
        error = weight[:, i] - (codes[:, i] - z) * s
        weight[:, left] -= error[:, None] / inverse[0, 0] * inverse[0]
        left.pop(0)
    return codes


@pytest.mark.parametrize(("rows", "columns", "group_size", "bits"), [(5, 12, 4, 2), (3, 200, 20, 3), (2, 7, 7, 4)])
def test_columns_are_rounded_as_the_textbook_does(rows, columns, group_size, bits):
    weight, hessian = _problem(rows, columns)
    scale = torch.rand(rows, columns // group_size) + 0.5
    zero = torch.randn(rows, columns // group_size) * 0.3
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    got = _round_columns(weight, hessian, scale, zero, bits)
    wanted = _textbook(weight, hessian, scale, zero, low, high)
    assert (got.codes == wanted).float().mean() > 0.995  # a tie may fall either way in float32


def _brute_force(weight, hessian, scale, zero, bits):
    """The least error of one row (1, columns) over all codes there are."""
    values = range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    every = torch.tensor(list(itertools.product(values, repeat=weight.shape[1])), dtype=torch.int8)
    all_rows = Codes(every, scale.expand(len(every), -1), zero.expand(len(every), -1))
    return errors(weight.expand(len(every), -1), hessian, all_rows).min().item()


def test_codes_are_near_the_best_there_are():
    """Against all 4**6 codes of a row at the ranges that were found: never below, seldom far above, far from rounding."""
    ratios, plain = [], []
    for seed in range(40):
        weight, hessian = _problem(1, 6, seed)
        found = quantize_weight(weight, hessian, 2, 3, damping=0.0)
        best = _brute_force(weight, hessian, found.scale, found.zero, 2)
        grouped = weight.view(1, 2, 3)
        rounded = (grouped / found.scale[..., None] + found.zero[..., None]).round().clamp(-2, 1)
        plain_codes = Codes(rounded.flatten(1).to(torch.int8), found.scale, found.zero)
        ratios.append(errors(weight, hessian, found).item() / best)
        plain.append(errors(weight, hessian, plain_codes).item() / best)
    ratios, plain = torch.tensor(ratios), torch.tensor(plain)
    assert ratios.min() > 0.999
    assert ratios.median() < 1.05
    assert ratios.mean() < 0.5 * plain.mean()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_more_rounds_never_cost(bits):
    weight, hessian = _problem(6, 64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64)
    losses = [errors(weight, damped, quantize_weight(weight, hessian, bits, 16, rounds=n)) for n in range(4)]
    for earlier, later in itertools.pairwise(losses):
        assert bool((later <= earlier * 1.0001).all())
    assert losses[3].sum() < losses[0].sum()


def test_without_correlation_it_is_rounding_to_nearest():
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    found = quantize_weight(weight, torch.zeros(32, 32), 3, 8)
    grouped = weight.view(4, 4, 8)
    nearest = (grouped / found.scale[..., None] + found.zero[..., None]).round().clamp(-4, 3).flatten(1)
    assert torch.equal(nearest, found.codes.float())


@pytest.mark.parametrize(("rows", "columns", "group_size", "bits"), [(1, 21, 21, 2), (7, 130, 13, 3), (3, 5, 1, 4)])
def test_codes_fit_their_bits_and_ranges_fit_float16(rows, columns, group_size, bits):
    weight, hessian = _problem(rows, columns)
    found = quantize_weight(weight, hessian, bits, group_size)
    assert found.codes.dtype == torch.int8 and found.codes.shape == weight.shape
    assert found.scale.shape == found.zero.shape == (rows, columns // group_size)
    assert found.codes.min() >= -(2 ** (bits - 1)) and found.codes.max() < 2 ** (bits - 1)
    assert torch.equal(found.scale.half().float(), found.scale) and bool((found.scale > 0).all())
    assert torch.equal(found.zero.half().float(), found.zero)
    assert dequantize(found).isfinite().all()


@pytest.mark.parametrize("value", [0.0, 1e-6, 3.0, -1e4])
def test_weights_that_are_all_alike_keep_their_value(value):
    weight = torch.full((2, 16), value)
    found = quantize_weight(weight, torch.eye(16), 2, 8)
    assert (dequantize(found) - weight).abs().max() <= 2e-3 * abs(value) + 1e-12


def test_a_group_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="groups of 5 do not fit 12 columns"):
        quantize_weight(torch.ones(1, 12), torch.eye(12), 4, 5)


def test_rows_of_zeros_beside_others_stay_zero():
    weight, hessian = _problem(4, 64)
    weight[1] = 0
    weight[2] *= 1e-9
    found = quantize_weight(weight, hessian, 4, 16)
    assert found.scale.isfinite().all() and bool((found.scale > 0).all()) and found.zero.isfinite().all()
    assert torch.equal(found.scale.half().float(), found.scale)
    assert dequantize(found)[1:3].abs().max() < 1e-6
