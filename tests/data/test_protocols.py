import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessorPil

from segquant.config import check_protocol
from segquant.data import protocols
from segquant.errors import ConfigError


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (683, 512, (704, 512)),  # 683 is no multiple of 32
        (640, 480, (704, 512)),  # 682.67 -> 683 -> 704
        (512, 683, (512, 704)),
        (512, 512, (512, 512)),
        (256, 256, (512, 512)),  # small images grow
        (4000, 500, (2048, 256)),  # the long side binds: 2048x256
        (300, 400, (512, 704)),
    ],
)
def test_aligned_512(width, height, expected):
    assert protocols.resize_steps("aligned-512-v1", width, height)[-1] == expected


def test_fixed_squashes_to_height_by_width():
    image = Image.new("RGB", (30, 50))
    assert protocols.resize(image, "fixed-64x96-v1").size == (96, 64)


def test_fixed_512_is_the_image_processors_own():
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8))
    processor = SegformerImageProcessorPil(do_reduce_labels=False)
    wanted = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = protocols.normalize(protocols.resize(image, "fixed-512x512-v1"))
    assert torch.equal(ours, wanted) or (ours - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["aligned", "fixed-0x512-v1", "fixed-512x512", "fixed-512x512-v2", ""])
def test_an_unknown_protocol_lists_the_known(name):
    with pytest.raises(ConfigError, match="aligned-512-v1 or fixed-HxW-v1"):
        check_protocol(name)
