"""Scales and zeros of a few bits: what is on a grid is found again, to the last bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segquant.base.config import Ranges
from segquant.quant.flat import SHARES, pack_codes
from segquant.quant.ranges import from_shares, from_steps, round_scale, round_zero, shares_of, steps_of
from segquant.quant.tensors import as_float16

WIDTHS = st.integers(1, 8)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 9))


def positive(shape, seed, spread):
    generator = torch.Generator().manual_seed(seed)
    return torch.exp(spread * torch.randn(shape, generator=generator))


@given(WIDTHS, SHAPES, st.integers(0, 999), st.floats(0, 8))
@settings(deadline=None)
def test_a_scale_is_the_nearest_share_of_the_largest_of_its_row(width, shape, seed, spread):
    scale = positive(shape, seed, spread)
    rounded = round_scale(scale, Ranges(width, 1))
    largest = rounded.amax(1, keepdim=True)
    assert torch.equal(largest, as_float16(scale.amax(1, keepdim=True).clamp_min(2**-24)))
    assert bool((rounded > 0).all())
    # No share is below the smallest one, and none above the largest scale as float16 has it.
    scale = torch.where(scale == scale.amax(1, keepdim=True), largest, scale)
    nearest = torch.maximum(torch.minimum(scale.clamp_min(2**-24), largest), largest / 2**width)
    assert bool(((rounded - nearest).abs() <= 0.5001 * largest / 2**width).all())
    assert torch.equal(round_scale(rounded, Ranges(width, 1)), rounded)


@pytest.mark.parametrize("ranges", [None, Ranges(1, 1), Ranges(6, 6)])
def test_no_scale_becomes_zero(ranges):
    """Beside a scale of 1, float16 has only zero for one of 1e-9."""
    rounded = round_scale(torch.tensor([[1.0, 1e-9], [1e-9, 1e-12]]), ranges)
    assert rounded.min() >= 2**-24


@given(st.integers(2, 8), WIDTHS, SHAPES, st.integers(0, 999), st.floats(0, 300))
@settings(deadline=None)
def test_a_zero_is_the_nearest_of_its_grid(bits, width, shape, seed, spread):
    zero = spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    rounded, step = round_zero(zero, bits, Ranges(1, width)), 2.0 ** (bits + 1 - width)
    lowest, highest = -(2.0**bits), 2.0**bits - step
    assert lowest <= rounded.min() and rounded.max() <= highest
    assert bool(((rounded - zero.clamp(lowest, highest)).abs() <= step / 2).all())
    assert torch.equal(round_zero(rounded, bits, Ranges(1, width)), rounded)


@given(st.integers(2, 8), WIDTHS, WIDTHS, SHAPES, st.integers(0, 999), st.floats(0, 8))
@settings(deadline=None)
def test_integers_of_ranges_on_a_grid_give_them_back(bits, scale_width, zero_width, shape, seed, spread):
    ranges = Ranges(scale_width, zero_width)
    scale = round_scale(positive(shape, seed, spread), ranges)
    largest, shares, width = shares_of(scale)
    assert width <= scale_width and 1 <= shares.min() and shares.max() <= 2**width
    assert torch.equal(largest, largest.half().float()) or largest.max() > 60000 or largest.min() < 1e-4
    assert torch.equal(from_shares(largest, shares, width), scale)
    zero = round_zero(bits * torch.randn(shape, generator=torch.Generator().manual_seed(seed)), bits, ranges)
    steps, width = steps_of(zero, bits)
    assert width <= zero_width and -(2 ** (width - 1)) <= steps.min() and steps.max() < 2 ** (width - 1)
    assert torch.equal(from_steps(steps, bits, width), zero)


@pytest.mark.parametrize("value", [0.1234567, 1e-30, 7.0])
def test_ranges_off_every_grid_are_not_taken_for_integers(value):
    scale = torch.tensor([[1.0, 0.3 + value % 0.1]])
    assert shares_of(scale) is None
    assert steps_of(torch.tensor([[value * 1.01]]), 2) is None
    assert steps_of(torch.tensor([[float("nan")]]), 2) is None


def test_rows_of_one_scale_need_their_largest_and_a_bit_a_group():
    scale = torch.full((3, 4), 0.5)
    assert shares_of(scale)[2] == 1


def test_packed_ranges_take_their_bits_and_wide_ones_stay():
    ranges = Ranges(6, 5)
    scale, zero = round_scale(positive((5, 7), 0, 1.0), ranges), round_zero(torch.randn(5, 7), 2, ranges)
    tensors = {"a._weight_scale": scale, "a._weight_zero_point": zero}
    packed = pack_codes(tensors, list(tensors), 2)
    assert packed["a._weight_scale"] == {"shares": 6, "shape": [5, 7]}
    assert packed["a._weight_zero_point"]["of"] == 2 and packed["a._weight_zero_point"]["steps"] <= 5
    assert tensors["a._weight_scale"].shape == (5, 1)
    assert tensors["a._weight_scale" + SHARES].nbytes == -(-35 * 6 // 8)
    wide = {"a._weight_scale": torch.rand(5, 7).half().float(), "a._weight_zero_point": torch.randn(5, 7)}
    kept = dict(wide)
    assert pack_codes(wide, list(wide), 2) == {} and all(wide[key] is kept[key] for key in kept)
