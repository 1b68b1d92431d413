import itertools
import subprocess
import sys

import pytest
import torch

from segquant.base.config import Ranges
from segquant.quant import fit
from segquant.quant.codes import Codes, Grid, dequantize, errors
from segquant.quant.gptq import _round_columns, quantize_weight
from segquant.quant.ranges import round_ranges


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


def test_a_weight_that_requires_gradients_gets_the_codes_of_one_that_does_not():
    weight, hessian = _problem(4, 16)
    expected, codes = (quantize_weight(w, hessian, Grid(2, 8)) for w in (weight, weight.clone().requires_grad_()))
    assert all(torch.equal(a, b) for a, b in zip(codes, expected, strict=True))


@pytest.mark.parametrize(("rows", "columns", "group_size", "bits"), [(5, 12, 4, 2), (3, 200, 20, 3), (2, 7, 7, 4)])
def test_columns_are_rounded_as_in_the_textbook(rows, columns, group_size, bits):
    weight, hessian = _problem(rows, columns)
    scale = torch.rand(rows, columns // group_size) + 0.5
    zero = torch.randn(rows, columns // group_size) * 0.3
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    actual = _round_columns(weight, hessian, scale, zero, bits)
    expected = _textbook(weight, hessian, scale, zero, low, high)
    assert (actual.codes == expected).float().mean() > 0.995  # a tie can round either way in float32


def _brute_force(weight, hessian, scale, zero, bits):
    """The smallest error of one row (1, columns) over all possible codes."""
    values = range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    all_codes = torch.tensor(list(itertools.product(values, repeat=weight.shape[1])), dtype=torch.int8)
    rows = len(all_codes)
    candidates = Codes(all_codes, scale.expand(rows, -1), zero.expand(rows, -1))
    return errors(weight.expand(rows, -1), hessian, candidates).min().item()


def test_codes_are_close_to_the_optimum():
    """Compare with all 4**6 codes of a row: never better, seldom much worse, far better than rounding."""
    ratios, plain = [], []
    for seed in range(40):
        weight, hessian = _problem(1, 6, seed)
        result = quantize_weight(weight, hessian, Grid(2, 3), damping=0.0)
        best = _brute_force(weight, hessian, result.scale, result.zero, 2)
        grouped = weight.view(1, 2, 3)
        rounded = (grouped / result.scale[..., None] + result.zero[..., None]).round().clamp(-2, 1)
        plain_codes = Codes(rounded.flatten(1).to(torch.int8), result.scale, result.zero)
        ratios.append(errors(weight, hessian, result).item() / best)
        plain.append(errors(weight, hessian, plain_codes).item() / best)
    ratios, plain = torch.tensor(ratios), torch.tensor(plain)
    assert ratios.min() > 0.999
    assert ratios.median() < 1.05
    assert ratios.mean() < 0.5 * plain.mean()


@pytest.mark.parametrize("ranges", [None, Ranges(6, 6), Ranges(1, 1)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_more_rounds_never_increase_the_error(bits, ranges):
    weight, hessian = _problem(6, 64)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(64)
    grid = Grid(bits, 16, ranges)
    losses = [errors(weight, damped, quantize_weight(weight, hessian, grid, rounds=n)) for n in range(4)]
    for earlier, later in itertools.pairwise(losses):
        assert bool((later <= earlier * 1.0001).all())
    assert losses[3].sum() < losses[0].sum()


def test_without_correlation_gptq_rounds_to_nearest():
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    result = quantize_weight(weight, torch.zeros(32, 32), Grid(3, 8))
    grouped = weight.view(4, 4, 8)
    nearest = (grouped / result.scale[..., None] + result.zero[..., None]).round().clamp(-4, 3).flatten(1)
    assert torch.equal(nearest, result.codes.float())


@pytest.mark.parametrize(("rows", "columns", "group_size", "bits"), [(1, 21, 21, 2), (7, 130, 13, 3), (3, 5, 1, 4)])
def test_codes_fit_their_bits_and_ranges_fit_float16(rows, columns, group_size, bits):
    weight, hessian = _problem(rows, columns)
    result = quantize_weight(weight, hessian, Grid(bits, group_size))
    assert result.codes.dtype == torch.int8 and result.codes.shape == weight.shape
    assert result.scale.shape == result.zero.shape == (rows, columns // group_size)
    assert result.codes.min() >= -(2 ** (bits - 1)) and result.codes.max() < 2 ** (bits - 1)
    assert torch.equal(result.scale.half().float(), result.scale) and bool((result.scale > 0).all())
    assert torch.equal(result.zero.half().float(), result.zero)
    assert dequantize(result).isfinite().all()


@pytest.mark.parametrize(("ranges", "share"), [(None, 2e-3), (Ranges(6, 6), 2e-2), (Ranges(2, 2), 0.2)])
@pytest.mark.parametrize("value", [0.0, 1e-6, 3.0, -1e4])
def test_equal_weights_keep_their_value(value, ranges, share):
    weight = torch.full((2, 16), value)
    result = quantize_weight(weight, torch.eye(16), Grid(2, 8, ranges))
    assert (dequantize(result) - weight).abs().max() <= share * abs(value) + 1e-6 * (ranges is not None) + 1e-12


@pytest.mark.parametrize(
    ("bits", "scale", "zero", "most"),
    [(2, 6, 6, 1.1), (3, 6, 6, 1.1), (4, 8, 8, 1.1), (2, 3, 4, 1.5), (3, 3, 4, 2), (4, 4, 4, 4)],
)
def test_ranges_of_few_bits_are_fitted_and_not_rounded_afterwards(bits, scale, zero, most):
    weight, hessian = _problem(24, 96)
    ranges, damped = Ranges(scale, zero), hessian + 0.01 * hessian.diagonal().mean() * torch.eye(96)
    wide = quantize_weight(weight, hessian, Grid(bits, 16))
    fitted = quantize_weight(weight, hessian, Grid(bits, 16, ranges))
    for values, stored in zip(fitted[1:], round_ranges(*fitted[1:], bits, ranges), strict=True):
        assert torch.equal(values, stored)
    rounded = Codes(wide.codes, *round_ranges(*wide[1:], bits, ranges))
    loss = errors(weight, damped, fitted).sum()
    assert loss < most * errors(weight, damped, wide).sum()
    assert loss < 0.85 * errors(weight, damped, rounded).sum() or scale > 4


def test_a_scale_and_a_zero_are_the_best_of_their_grids():
    """Compare with every scale and zero of the last group that moved, the codes and the other groups fixed."""
    weight, hessian = _problem(5, 16)
    ranges = Ranges(3, 4)
    start = quantize_weight(weight, hessian, Grid(2, 8, ranges), rounds=0)
    start = Codes(start.codes, torch.stack([start.scale.amax(1), start.scale.amax(1) / 2], 1), start.zero)
    moved = fit.move(weight, hessian, start, Grid(2, 8, ranges))
    best = torch.full((5,), torch.inf)
    for share in range(1, 9):
        for step in range(-8, 8):
            scale, zero = moved.scale.clone(), moved.zero.clone()
            scale[:, 1], zero[:, 1] = scale[:, 0] * share / 8, step / 2
            best = torch.minimum(best, errors(weight, hessian, Codes(start.codes, scale, zero)))
    assert torch.allclose(errors(weight, hessian, moved), best, rtol=1e-4)


def test_a_group_size_that_does_not_divide_the_columns_is_refused():
    with pytest.raises(ValueError, match="group_size 5 does not divide 12 columns"):
        quantize_weight(torch.ones(1, 12), torch.eye(12), Grid(4, 5))


def test_rows_of_zeros_stay_zero():
    weight, hessian = _problem(4, 64)
    weight[1] = 0
    weight[2] *= 1e-9
    result = quantize_weight(weight, hessian, Grid(4, 16))
    assert result.scale.isfinite().all() and bool((result.scale > 0).all()) and result.zero.isfinite().all()
    assert torch.equal(result.scale.half().float(), result.scale)
    assert dequantize(result)[1:3].abs().max() < 1e-6


def test_many_groups_are_fitted_on_several_threads():
    """Least squares for 90 groups of a row solve matrices of 180 rows: many of these at once failed, or never ended."""
    code = (
        "import torch; from segquant.quant.codes import Grid; from segquant.quant.gptq import quantize_weight;"
        "torch.set_num_threads(2); torch.manual_seed(0); inputs = torch.randn(3000, 1440);"
        "quantize_weight(torch.randn(8, 1440), inputs.T @ inputs, Grid(2, 16)); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr
