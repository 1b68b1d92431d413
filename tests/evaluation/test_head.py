import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, small_segformer
from torch import nn

from segquant import models
from segquant.base.config import Recipe, load
from segquant.data.images import decode_image
from segquant.data.preprocessing import IMAGENET
from segquant.data.protocols import resize
from segquant.data.rows import rows
from segquant.data.sources import open_source
from segquant.evaluation.predict import forward
from segquant.evaluation.upsample import class_map
from segquant.quant.head import EarlyFuse, LiveFuse, fuse_early, fused_live
from segquant.quant.recipes import quantize

METHODS = {
    name: replace(recipe, algorithm="affine", train=None)  # artifacts hold the codes of all algorithms alike
    for name, recipe in load(ROOT / "params.yaml").quant.methods.items()
    if isinstance(recipe, Recipe) and recipe.activations != "float8"  # needs a GPU
}
WEIGHT_ONLY = {n: recipe for n, recipe in METHODS.items() if recipe.weights != "bfloat16" and not recipe.activations}


@pytest.fixture
def tiny():
    return small_segformer(stages=4)


def randomized(model):
    """Give `model` random statistics and biases, as training would."""
    generator = torch.Generator().manual_seed(1)
    for module in model.decode_head.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.1, 4, generator=generator)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(generator=generator)
    return model.requires_grad_(False)


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (33, 127), (32, 32)])
def test_the_logits_are_the_same_in_double_precision(tiny, size):
    """Without rounding, the order of the linear maps makes no difference."""
    early = copy.deepcopy(randomized(tiny))
    assert isinstance(fuse_early(early).decode_head, EarlyFuse)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    expected = forward(tiny.double(), images)
    assert expected.dtype == torch.float64
    assert (forward(early, images) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("count", [1, 3])
def test_the_maps_are_interpolated_with_channels_last_in_memory(tiny, count, monkeypatch):
    """An order that PyTorch's interpolation takes up to ten times as long for would be silent."""
    shapes, interpolate = [], F.interpolate

    def spy(maps, *args, **kwargs):
        assert maps.is_contiguous(memory_format=torch.channels_last)
        shapes.append(maps.shape)
        return interpolate(maps, *args, **kwargs)

    monkeypatch.setattr(F, "interpolate", spy)
    logits = forward(fuse_early(randomized(tiny)), torch.ones(count, 3, 128, 128))
    assert [shape[2] for shape in shapes] == [16, 8, 4]
    assert logits.is_contiguous(memory_format=torch.channels_last)  # as class_map takes them


@pytest.fixture(scope="module")
def scenes():
    source = rows(open_source("scenes", "validation", 2))
    images = [decode_image(row["image"], row["id"]) for row in source]
    return torch.stack([IMAGENET(resize(image, "fixed-128x128-v1")) for image in images])


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_every_weight_only_method_gives_the_same_classes(name, scenes):
    model = models.load(ROOT / "models/scenes-b0")
    quantize(model, WEIGHT_ONLY[name], torch.device("cpu"), scenes)
    expected = forward(model, scenes)
    logits = forward(fuse_early(model), scenes)
    assert isinstance(model.decode_head, EarlyFuse)
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    differ = sum((class_map(a, 256, 256) != class_map(b, 256, 256)).sum() for a, b in zip(logits, expected))
    assert differ <= 2  # of 131,072 pixels: near ties


@pytest.mark.parametrize("name", METHODS)
def test_the_number_of_threads_changes_no_bit(name):
    """Under torchrun a process has one thread; a single process has one per core."""
    model = models.load(ROOT / "models/scenes-b0")
    quantize(model, METHODS[name], torch.device("cpu"))
    images = torch.randn(4, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    threads, logits = torch.get_num_threads(), []
    try:
        for count in (2, 1):
            torch.set_num_threads(count)
            logits.append(forward(fuse_early(model), images))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("bfloat16"),
        Recipe("int8", activations="int8"),
        Recipe("int4", group_size=16, activations="int8"),
    ],
)
def test_a_head_that_rounds_activations_is_not_replaced(tiny, recipe):
    quantize(tiny, recipe, torch.device("cpu"))
    head = tiny.decode_head
    assert fuse_early(tiny).decode_head is head


def test_a_model_with_another_head_is_unchanged():
    model = nn.Linear(2, 2)
    assert fuse_early(model) is model


def test_a_head_in_training_gives_the_same_logits_and_gradients(tiny):
    """In float64, so that the order of sums hardly matters."""
    model = randomized(tiny).double().requires_grad_(True)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 150, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def step():
        model.zero_grad()
        logits = model(images).logits
        (logits * weights).sum().backward()
        return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    expected, gradients = step()
    head = model.decode_head
    with fused_live(model):
        assert isinstance(model.decode_head, LiveFuse)
        logits, live_gradients = step()
    assert model.decode_head is head
    assert torch.allclose(logits, expected, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        live = live_gradients[name.replace("decode_head.", "decode_head.head.")]
        assert torch.allclose(live, gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max() + 1)), name


def test_a_head_in_training_follows_its_weights(tiny):
    with fused_live(randomized(tiny)) as model, torch.no_grad():
        before = model(torch.ones(1, 3, 64, 64)).logits
        model.decode_head.head.linear_projections[0].proj.weight += 0.1
        assert not torch.equal(model(torch.ones(1, 3, 64, 64)).logits, before)
