import pytest
import torch
from torch import nn

from segquant.quant.coverage import LinearConv2d, choose, dense_convs, rewrite


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


class Standardized(nn.Conv2d):
    """As in DPT's hybrid backbone: rewritten as a plain convolution it would compute something else."""

    def forward(self, inputs):
        return self._conv_forward(inputs, self.weight - self.weight.mean(), self.bias)


class Padded(nn.Conv2d):
    def _conv_forward(self, inputs, weight, bias):
        return super()._conv_forward(nn.functional.pad(inputs, (0, 1, 0, 1)), weight, bias)


def test_a_layer_that_computes_something_of_its_own_stays_as_it_is():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Standardized(4, 4, 1), Padded(4, 4, 1), nn.Linear(4, 4))
    assert dense_convs(model) == ["0"] and choose(model, "all") == ["0", "3"] and choose(model, "linear") == ["3"]


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
