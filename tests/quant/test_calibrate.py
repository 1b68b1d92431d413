import pytest
import torch
from conftest import small_segformer
from torch import nn
from torch.nn import functional as F

from segquant.base.config import Recipe
from segquant.quant.calibrate import _solve, calibrate, position_weights
from segquant.quant.codes import Grid, dequantize
from segquant.quant.coverage import dense_convs, rewrite
from segquant.quant.gptq import quantize_weight
from segquant.quant.recipes import quantize


@pytest.fixture
def images():
    return torch.randn(6, 3, 64, 96, generator=torch.Generator().manual_seed(3)).cumsum(2) / 4


@pytest.fixture
def model():
    model = small_segformer(stages=2)
    rewrite(model, dense_convs(model))
    return model.requires_grad_(False)


def _layers(model, bits=3):
    return {
        name: Grid(bits, 16 if m.in_features % 16 == 0 else 21)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear)
    }


def _apply(model, results):
    for name, (codes, bias) in results.items():
        linear = model.get_submodule(name)
        linear.weight.data = dequantize(codes)
        if bias is not None:
            linear.bias.data = bias
    return model


def _noise(model, inputs, expected):
    with torch.no_grad():
        return ((model(inputs).logits - expected).norm() / expected.norm()).item()


def test_calibration_is_deterministic_and_does_not_change_the_model(model, images):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers = _layers(model)
    first, second = calibrate(model, layers, images), calibrate(model, layers, images)
    assert list(first) == list(second) == list(layers)
    for name in layers:
        for a, b in zip(first[name][0], second[name][0], strict=True):
            assert torch.equal(a, b)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not any(m._forward_hooks for m in model.modules() if isinstance(m, nn.Linear))


def test_calibration_is_closer_to_float_than_rounding_each_layer(model, images):
    layers, unseen = _layers(model), images.flip(3) * 0.9
    with torch.no_grad():
        expected = model(unseen).logits
    results = calibrate(model, layers, images)
    rounded = {}
    for name, grid in layers.items():
        linear = model.get_submodule(name)
        zeros = torch.zeros(linear.in_features, linear.in_features)
        rounded[name] = quantize_weight(linear.weight, zeros, grid), linear.bias
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calibrated = _noise(_apply(model, results), unseen, expected)
    model.load_state_dict(original)
    assert calibrated < 0.8 * _noise(_apply(model, rounded), unseen, expected)


def test_the_bias_corrects_the_mean_error(model, images):
    """The first layer has the same inputs in both halves, so its weighted mean output equals the float model's."""
    name = next(iter(_layers(model)))
    inputs = {}
    handle = model.get_submodule(name).register_forward_hook(
        lambda _m, args, output: inputs.update(x=args[0], y=output)
    )
    with torch.no_grad():
        model(images)
    handle.remove()
    codes, bias = calibrate(model, _layers(model, 2), images)[name]
    weights = position_weights(model, [name], images)[name].flatten()
    output = inputs["x"].flatten(0, 1) @ dequantize(codes).T + bias
    expected = inputs["y"].flatten(0, 1)
    mean, mean_expected = (weights @ values / weights.sum() for values in (output, expected))
    assert (mean - mean_expected).abs().max() < 1e-3 * expected.abs().max()
    assert (output - expected).abs().max() > 0.05 * expected.abs().max()  # single outputs differ


def test_positions_that_matter_more_weigh_more(model, images):
    """Pixels of a rare class weigh more than pixels of a common one."""
    name = "decode_head.classifier.linear"
    weights = position_weights(model, [name], images)[name]
    assert weights.shape == (6, 16 * 24)
    assert weights.mean().item() == pytest.approx(1, abs=1e-5)
    with torch.no_grad():
        classes = model(images).logits.argmax(1).flatten(1)
    counts = classes.flatten().bincount()
    rare, common = counts[counts > 0].min(), counts.max()
    assert rare * 4 < common, "the random model must predict classes of different frequency"
    mean = {n: weights[(counts == n)[classes]].mean() for n in (rare.item(), common.item())}
    assert mean[rare.item()] > mean[common.item()]


def test_a_layer_that_the_model_does_not_call_is_rounded_to_nearest(model, images):
    model.spare = nn.Linear(32, 8).requires_grad_(False)
    results = calibrate(model, {**_layers(model), "spare": Grid(4, 16)}, images)
    codes, bias = results["spare"]
    assert torch.equal(bias, model.spare.bias)
    assert (dequantize(codes) - model.spare.weight).abs().max() < 0.04


def test_constant_inputs_and_inputs_of_zeros_do_no_harm(model, images):
    """One image, a layer whose inputs are all equal, and a layer whose inputs are all zero."""
    block = model.segformer.stages[1].blocks[0]
    block.layernorm_after.weight.zero_()
    block.layernorm_after.bias.fill_(100.0)  # the same input at every position
    model.segformer.stages[0].blocks[0].layernorm_after.weight.zero_()
    model.segformer.stages[0].blocks[0].layernorm_after.bias.zero_()  # zeros at every position
    with torch.no_grad():
        expected = model(images).logits
    results = calibrate(model, _layers(model, 4), images[:1])
    assert all(dequantize(codes).isfinite().all() for codes, _ in results.values())
    assert _noise(_apply(model, results), images, expected) < 0.5


def test_wide_inputs_near_their_mean_do_not_break_the_factorization():
    """In float32, the second moment minus the squared mean would not be positive definite."""
    linear = nn.Linear(1024, 8).requires_grad_(False)
    inputs = 1 + 1e-3 * torch.randn(4, 200, 1024, generator=torch.Generator().manual_seed(0))
    codes, bias = _solve(linear, inputs, inputs, torch.ones(4, 200), Grid(4, 32))
    difference = F.linear(inputs, dequantize(codes), bias) - linear(inputs)
    assert difference.abs().max() < 0.01 and difference.mean(dim=(0, 1)).abs().max() < 1e-3


def test_a_rank_that_quantizes_alone_does_not_wait_for_the_others(tiny, images, monkeypatch):
    """`quant.launcher` may start every method under torchrun, but only methods with training use several ranks."""

    def hang():
        raise AssertionError("waits for the other ranks")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("segquant.base.ranks.join", hang)
    assert quantize(tiny, Recipe("int4", 16, "gptq"), torch.device("cpu"), images)
