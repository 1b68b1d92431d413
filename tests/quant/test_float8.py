"""Float8 activations on a CPU, with the same arithmetic as on a GPU; torchao refuses the CPU's slow kernels."""

import pytest
import torch
from conftest import ROOT
from torch import nn

from segquant import models
from segquant.base.config import Recipe
from segquant.quant import recipes as methods
from segquant.quant.artifacts import load_quantized, save_quantized
from segquant.quant.float8 import Float8Linear

RECIPE = Recipe("float8", activations="float8")


@pytest.fixture
def scenes(monkeypatch):
    monkeypatch.setattr("torchao.quantization.quant_api._check_hardware_support", lambda granularity: None)
    monkeypatch.setattr(methods, "unavailable", lambda recipe, device: None)
    return models.load(ROOT / "models/scenes-b0")


def test_a_float32_model_computes_only_its_products_in_float8(scenes, tmp_path):
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    expected = scenes(images).logits
    methods.quantize(scenes, RECIPE, torch.device("cpu"))
    logits = scenes(images).logits
    assert logits.dtype == torch.float32
    assert 0.95 < (logits.argmax(1) == expected.argmax(1)).float().mean() < 1
    linears = [m for m in scenes.modules() if isinstance(m, nn.Linear)]
    floats = [m for m in linears if not isinstance(m, Float8Linear)]
    # Two layers stay float, because a side is not a multiple of 16: 3x7x7 inputs and 150 classes.
    assert len(floats) == 2 and all(m.weight.dtype == torch.float32 for m in floats)
    # With one scale per token, other values in the batch change nothing, however large they are.
    layer, inputs = scenes.segformer.stages[0].blocks[0].mlp.fc1, torch.randn(4, 32)
    assert torch.equal(layer(inputs), layer(torch.cat([inputs, 1000 * inputs]))[:4])
    save_quantized(scenes, RECIPE, tmp_path / "float8", ROOT / "models/scenes-b0", 1)
    assert torch.equal(load_quantized(tmp_path / "float8")(images).logits, logits)
