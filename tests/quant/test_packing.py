import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segquant.quant.packing import pack, unpack


@given(
    bits=st.integers(1, 8),
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=3).map(tuple),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_unpack_reverses_pack_for_every_width_and_shape(bits, shape, seed):
    half = 1 << (bits - 1)
    codes = torch.from_numpy(np.random.default_rng(seed).integers(-half, half, shape).astype(np.int8))
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack(packed, bits, shape), codes)


def test_at_4_bits_a_byte_holds_two_codes_the_first_in_its_low_half():
    assert pack(torch.tensor([-8, 7], dtype=torch.int8), 4).tolist() == [0xF0]


def test_at_2_bits_a_byte_holds_four_codes():
    assert pack(torch.tensor([-2, -1, 0, 1], dtype=torch.int8), 2).tolist() == [0b11100100]


def test_codes_out_of_range_and_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="do not fit 2 bits"):
        pack(torch.tensor([2], dtype=torch.int8), 2)
    with pytest.raises(ValueError, match="3 bytes do not hold 4 codes of 4 bits"):
        unpack(torch.zeros(3, dtype=torch.uint8), 4, (2, 2))
