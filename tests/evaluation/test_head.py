import copy
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from torch import nn

from segquant import models
from segquant.base.config import Recipe, load
from segquant.data.images import decode_image
from segquant.data.protocols import normalize, resize
from segquant.data.sources import open_source, rows
from segquant.evaluation.predict import forward
from segquant.evaluation.upsample import class_map
from segquant.quant.head import EarlyFuse, LiveFuse, fuse_early, fused_live
from segquant.quant.recipes import quantize

METHODS = {
    name: replace(recipe, algorithm="affine", train=None)  # another algorithm's codes are held the same way
    for name, recipe in load(ROOT / "params.yaml").quant.methods.items()
    if isinstance(recipe, Recipe) and recipe.activations != "float8"  # of a GPU
}
WEIGHT_ONLY = {n: recipe for n, recipe in METHODS.items() if recipe.weights != "bfloat16" and not recipe.activations}


def stirred(model):
    """`model` with the statistics and biases that training would have left behind."""
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
    """With rounding out of the way, the other order of the same linear maps."""
    early = copy.deepcopy(stirred(tiny))
    assert isinstance(fuse_early(early).decode_head, EarlyFuse)
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    wanted = forward(tiny.double(), images)
    assert wanted.dtype == torch.float64
    assert (forward(early, images) - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.fixture(scope="module")
def scenes():
    some = rows(open_source("scenes", "validation", 2))
    return torch.stack([normalize(resize(decode_image(row["image"], row["id"]), "fixed-128x128-v1")) for row in some])


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_every_weight_only_method_gives_the_same_classes(name, scenes):
    model = models.load(ROOT / "models/scenes-b0")
    quantize(model, WEIGHT_ONLY[name], torch.device("cpu"), scenes)
    wanted = forward(model, scenes)
    found = forward(fuse_early(model), scenes)
    assert isinstance(model.decode_head, EarlyFuse)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    differ = sum((class_map(a, 256, 256) != class_map(b, 256, 256)).sum() for a, b in zip(found, wanted))
    assert differ <= 2  # of 131,072 pixels: ties but for rounding


@pytest.mark.parametrize("name", METHODS)
def test_the_number_of_threads_changes_no_bit(name):
    """torchrun gives each of its processes one, where a process alone has as many as there are cores."""
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
def test_a_head_that_rounds_on_its_way_is_left_as_it_is(tiny, recipe):
    quantize(tiny, recipe, torch.device("cpu"))
    head = tiny.decode_head
    assert fuse_early(tiny).decode_head is head


def test_a_model_without_such_a_head_is_left_as_it_is():
    model = nn.Linear(2, 2)
    assert fuse_early(model) is model


def test_a_head_in_training_gives_the_same_logits_and_gradients(tiny):
    """In float64, where the order of sums is no excuse."""
    model = stirred(tiny).double().requires_grad_(True)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(2, 150, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def step():
        model.zero_grad()
        logits = model(images).logits
        (logits * weights).sum().backward()
        return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    wanted, gradients = step()
    head = model.decode_head
    with fused_live(model):
        assert isinstance(model.decode_head, LiveFuse)
        found, others = step()
    assert model.decode_head is head
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        other = others[name.replace("decode_head.", "decode_head.head.")]
        assert torch.allclose(other, gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max() + 1)), name


def test_a_head_in_training_follows_its_weights(tiny):
    with fused_live(stirred(tiny)) as model, torch.no_grad():
        before = model(torch.ones(1, 3, 64, 64)).logits
        model.decode_head.head.linear_projections[0].proj.weight += 0.1
        assert not torch.equal(model(torch.ones(1, 3, 64, 64)).logits, before)
