import pytest
import torch
from torch import nn

from segquant.quant.coverage import LinearConv2d, dense_convs, rewrite


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 4, "stride": 4, "bias": False},
        {"kernel_size": 7, "stride": 4, "padding": 3},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    ],
)
@pytest.mark.parametrize("size", [(16, 16), (17, 23)])
def test_the_rewritten_layer_equals_the_convolution(options, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 10, **options).double()
    inputs = torch.randn(2, 6, *size, dtype=torch.float64)
    expected, actual = conv(inputs), LinearConv2d(conv)(inputs)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() < 1e-12


def test_every_dense_convolution_of_segformer_is_rewritten_but_no_depthwise_one(tiny):
    names = dense_convs(tiny)
    assert "decode_head.classifier" in names and "decode_head.linear_fuse" in names
    assert not any("dwconv" in name for name in names)
    inputs = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected = tiny(inputs).logits
        rewrite(tiny, names)
        actual = tiny(inputs).logits
    assert dense_convs(tiny) == []
    assert (actual - expected).abs().max() < 1e-5
