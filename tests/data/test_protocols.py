from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import SegformerImageProcessorPil

from segquant.base.config import check_protocol
from segquant.base.errors import ConfigError
from segquant.data import protocols


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (683, 512, (704, 512)),  # 683 is not a multiple of 32
        (640, 480, (704, 512)),  # 682.67 -> 683 -> 704
        (512, 683, (512, 704)),
        (512, 512, (512, 512)),
        (256, 256, (512, 512)),  # small images grow
        (4000, 500, (2048, 256)),  # the long side limits: 2048x256
        (300, 400, (512, 704)),
    ],
)
def test_aligned_512(width, height, expected):
    assert protocols.resize_steps("aligned-512-v1", width, height)[-1] == expected


def test_fixed_resizes_to_height_by_width():
    image = Image.new("RGB", (30, 50))
    assert protocols.resize(image, "fixed-64x96-v1").size == (96, 64)


def photographs(real=None):
    rng = np.random.default_rng(0)
    yield Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
    yield Image.fromarray(rng.integers(0, 256, (700, 333, 3), dtype=np.uint8))
    for path in sorted((real / "ADEChallengeData2016/images/validation").iterdir()) if real else ():
        yield Image.open(path).convert("RGB")


@pytest.mark.parametrize("which", ["made up", "real"])
@pytest.mark.parametrize(("height", "width"), [(512, 512), (384, 512), (256, 256), (97, 1000)])
def test_fixed_equals_the_image_processor_to_the_last_bit(which, height, width, request):
    real = request.getfixturevalue("real") if which == "real" else None
    processor = SegformerImageProcessorPil(do_reduce_labels=False, size={"height": height, "width": width})
    for image in photographs(real):
        expected = processor(image, return_tensors="pt")["pixel_values"][0]
        assert torch.equal(protocols.model_input(image, f"fixed-{height}x{width}-v1"), expected)


@pytest.mark.parametrize("size", [(640, 512), (512, 1024), (1280, 1024)])
def test_aligned_equals_the_image_processor_where_a_single_resize_suffices(size):
    """The rescaled sides are already multiples of 32."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ((width, height),) = set(protocols.resize_steps("aligned-512-v1", *size))
    processor = SegformerImageProcessorPil(do_reduce_labels=False, size={"height": height, "width": width})
    expected = processor(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(protocols.model_input(image, "aligned-512-v1"), expected)


def described(width, height):
    """The official protocol in exact arithmetic: the largest size of the same aspect ratio with the long side at most
    2048 and the short side at most 512, rounded to whole pixels; then each side rounded up to a multiple of 32."""
    long, short = max(width, height), min(width, height)
    scale = min(Fraction(2048, long), Fraction(512, short))
    rescaled = [floor(side * scale + Fraction(1, 2)) for side in (width, height)]
    return rescaled, [side if side % 32 == 0 else side + 32 - side % 32 for side in rescaled]


@given(st.integers(16, 5000), st.integers(16, 5000))
def test_aligned_follows_the_description_in_the_paper(width, height):
    rescaled, aligned = described(width, height)
    assert [list(step) for step in protocols.resize_steps("aligned-512-v1", width, height)] == [rescaled, aligned]


def test_aligned_resizes_twice_like_the_official_code():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8))
    rescaled, aligned = described(500, 375)
    expected = image.resize(rescaled, Image.Resampling.BILINEAR).resize(aligned, Image.Resampling.BILINEAR)
    assert protocols.resize(image, "aligned-512-v1").tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["aligned", "fixed-0x512-v1", "fixed-512x512", "fixed-512x512-v2", ""])
def test_an_unknown_protocol_lists_the_known_protocols(name):
    with pytest.raises(ConfigError, match="aligned-512-v1 or fixed-HxW-v1"):
        check_protocol(name)
