"""Weights `auto`: what the estimate is worth, that the solver finds the best, and that the budget is kept to the byte."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import small_segformer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from segquant import models
from segquant.base.config import Auto, Calibration, Method, Ranges, as_mapping
from segquant.base.config import build as checked
from segquant.base.errors import ConfigError, ModelError
from segquant.methods import kind
from segquant.quant import allocate as allocation
from segquant.quant import build as building
from segquant.quant import influence as influences
from segquant.quant.allocate import allocate, solve
from segquant.quant.artifacts import describe_artifact, load_quantized
from segquant.quant.build import build
from segquant.quant.candidates import candidates, file_size, smallest
from segquant.quant.influence import influence
from segquant.quant.points import Points, agreement

CPU = torch.device("cpu")
AUTO = Auto(weights="auto", megabytes=1.0, group_sizes=(8, 16), calibration=Calibration(4))
HEAD = ["decode_head.linear_projections.*"]
IN_POINTS = replace(AUTO, megabytes=None, points=1.0, layers=HEAD, group_sizes=(4, 8, 16))
TWO_STAGES = pytest.mark.parametrize("tiny", [2], indirect=True)


@pytest.fixture
def tiny(request):
    """A small model whose biases float16 can hold, as those of trained models are; of four stages unless a test asks for
    two, whose convolutions have 16 times fewer columns."""
    model = small_segformer(stages=getattr(request, "param", 4))
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)).cumsum(2) / 4


def bounds(model, recipe=AUTO):
    """Bytes of the smallest and of the largest file."""
    known = candidates(model, replace(recipe, megabytes=None, points=1.0))
    largest = {name: grids[np.argmax(known.bytes[name])] for name, grids in known.grids.items()}
    return file_size(known, smallest(known)), file_size(known, largest)


def between(model, share, recipe=AUTO):
    low, high = bounds(model, recipe)
    return replace(recipe, megabytes=(low + share * (high - low)) / 1e6)


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 1e3), st.integers(1, 10**6)), min_size=1, max_size=4), min_size=1, max_size=5
    ),
    st.floats(0.1, 2),
)
def test_the_solver_finds_what_trying_everything_finds(groups, share):
    costs, sizes = ([[item[i] for item in group] for group in groups] for i in (0, 1))
    space = share * sum(map(max, sizes))
    fitting = [
        sum(cost for cost, _ in items)
        for items in itertools.product(*groups)
        if sum(size for _, size in items) <= space
    ]
    picks = solve(costs, sizes, space)
    assert (picks is None) == (not fitting)
    if picks is not None:
        assert sum(size[k] for size, k in zip(sizes, picks, strict=True)) <= space * (1 + 1e-9)
        found = sum(cost[k] for cost, k in zip(costs, picks, strict=True))
        assert found == pytest.approx(min(fitting), rel=1e-6, abs=1e-6)


def test_the_allocation_is_the_best_of_all_on_a_small_model(tiny, images):
    recipe = replace(AUTO, layers=HEAD, group_sizes=(8,))
    for share in (0.3, 0.6, 0.8):
        bounded = between(tiny, share, recipe)
        chosen = allocate(tiny, bounded, images)
        known = candidates(tiny, bounded)
        errors = {n: allocation._errors(tiny.get_submodule(n).weight, grids) for n, grids in known.grids.items()}
        costs = {n: v.square().mean(1).tolist() for n, v in influence(tiny, images, errors).items()}
        best = math.inf
        for picks in itertools.product(*(range(len(grids)) for grids in known.grids.values())):
            choice = {n: known.grids[n][k] for n, k in zip(known.grids, picks, strict=True)}
            if file_size(known, choice) <= 1e6 * bounded.megabytes:
                best = min(best, sum(costs[n][k] for n, k in zip(costs, picks, strict=True)))
        assert chosen.info["divergence"] == pytest.approx(best, rel=1e-6)


def test_a_file_that_is_too_large_by_a_part_of_a_byte_takes_few_solutions(tiny, monkeypatch):
    """Each solution took that part from the space, again and again, until a smaller file fitted."""
    known = candidates(tiny, IN_POINTS)
    costs = {name: np.arange(len(grids), 0, -1.0) for name, grids in known.grids.items()}
    calls = []
    monkeypatch.setattr(allocation, "solve", lambda *arguments: calls.append(solve(*arguments)) or calls[-1])
    low, high = bounds(tiny, IN_POINTS)
    budget = file_size(known, allocation._within(known, costs, (low + high) / 2)) - 0.03
    calls.clear()
    assert file_size(known, allocation._within(known, costs, budget)) <= budget
    assert 1 < len(calls) < 5


def test_influence_is_the_divergence_of_small_errors(tiny, images, monkeypatch):
    """Held against the divergence itself, with errors too small for more than the second order."""
    monkeypatch.setattr(influences, "SAMPLES", 400)
    generator = torch.Generator().manual_seed(5)
    names = ["segformer.stages.1.blocks.0.mlp.fc1", "decode_head.classifier"]
    weights = {name: tiny.get_submodule(name).weight for name in names}
    errors = {
        name: 1e-3 * w.std() * torch.randn(1, len(w), w[0].numel(), generator=generator) for name, w in weights.items()
    }
    products = influence(tiny, images[:1], errors)
    model = tiny.double()
    with torch.no_grad():
        exact = model(images[:1].double()).logits.log_softmax(1)
        for name in names:
            weight = model.get_submodule(name).weight
            weight += errors[name][0].view_as(weight)
            changed = model(images[:1].double()).logits.log_softmax(1)
            weight -= errors[name][0].view_as(weight)
            divergence = F.kl_div(changed, exact, log_target=True, reduction="sum") / changed[:, 0].numel()
            assert products[name].square().mean().item() == pytest.approx(divergence.item(), rel=0.25)


def test_influence_leaves_the_model_as_it_was(tiny, images):
    tiny.requires_grad_(False)
    tiny.decode_head.classifier.weight.requires_grad_(True)
    before = {name: (p.clone(), p.requires_grad) for name, p in tiny.named_parameters()}
    errors = {"decode_head.classifier": torch.ones(2, 150, tiny.decode_head.classifier.weight[0].numel())}
    first, second = (influence(tiny, images, errors)["decode_head.classifier"] for _ in range(2))
    assert torch.equal(first, second) and first.shape == (2, 4 * influences.SAMPLES)
    for name, parameter in tiny.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
        assert parameter.grad is None


def test_a_layer_that_the_model_does_not_call_has_no_influence(tiny, images):
    tiny.idle = torch.nn.Linear(8, 8)
    products = influence(tiny, images, {"idle": torch.ones(1, 8, 8)})
    assert products["idle"].tolist() == [[0.0] * 4 * influences.SAMPLES]


@pytest.mark.parametrize("ranges", [None, "float16", Ranges(4, 5)])
@pytest.mark.parametrize("tiny, share", [(2, 0.0), (2, 0.4), (4, 1.0)], indirect=["tiny"])
def test_the_file_keeps_the_budget(tmp_path, tiny, images, share, ranges):
    model = tiny
    models.save(model, tmp_path / "baseline")
    recipe = between(model, share, replace(AUTO, ranges=ranges))
    build(tmp_path / "baseline", recipe, tmp_path / "artifact", CPU, images)
    info = describe_artifact(tmp_path / "artifact")
    size = (tmp_path / "artifact/model.safetensors").stat().st_size
    budget = round(1e6 * recipe.megabytes)
    # A range that happens to need fewer bits than it may have takes fewer, which is rare but in tiny layers.
    assert 0.97 * info["allocation"]["bytes"] <= size <= info["allocation"]["bytes"] <= budget
    assert info["allocation"]["bytes"] >= 0.99 * budget
    for name, module in info["modules"].items():
        if name in info["allocation"]["layers"]:  # the others are convolutions with groups
            layer = info["allocation"]["layers"][name]
            assert (module["bits"], module["group_size"]) == (layer["bits"], layer["group_size"])
            assert layer["divergence"] <= layer["smallest"] or share == 0.0
    bits = {layer["bits"] for layer in info["allocation"]["layers"].values()}
    assert bits == ({2} if share == 0 else {8} if share == 1 else bits) and (share in (0, 1) or len(bits) > 1)


@TWO_STAGES
def test_an_artifact_says_its_recipe_and_loads(tmp_path, tiny, images, monkeypatch):
    model = tiny
    models.save(model, tmp_path / "baseline")
    recipe = between(model, 0.5)
    monkeypatch.setattr(building, "from_first", lambda _: 1 / 0)  # other ranks take part in trainings alone
    times = build(tmp_path / "baseline", recipe, tmp_path / "a", CPU, images)
    again = build(tmp_path / "baseline", recipe, tmp_path / "b", CPU, images)
    assert times["calibration_images"] == again["calibration_images"] == 4
    for name in ("model.safetensors", "quantization.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    stored = describe_artifact(tmp_path / "a")["recipe"]
    assert stored == json.loads(json.dumps(as_mapping(recipe)))
    assert checked(Method, stored, "recipe") == recipe
    with torch.no_grad():
        logits = load_quantized(tmp_path / "a")(images).logits
        exact = models.load(tmp_path / "baseline")(images).logits
    assert 0 < (logits - exact).norm() / exact.norm() < 0.3
    assert len(load_file(tmp_path / "a/model.safetensors")) > 10


@TWO_STAGES
def test_more_bytes_cost_less(tiny, images):
    divergences = [allocate(tiny, between(tiny, share), images).info["divergence"] for share in (0.05, 0.3, 0.6, 1.0)]
    assert divergences == sorted(divergences, reverse=True) and divergences[-1] < divergences[0] / 20


def distance(tiny, images):
    """Scores a model by how far its logits are from those of `tiny`, like points of mIoU: 100 for the model itself."""
    with torch.no_grad():
        exact = tiny(images).logits

    @torch.no_grad()
    def points(model):
        return 100 - 100 * ((model(images).logits - exact).norm() / exact.norm()).item()

    return Points(points, "closeness")


def test_a_budget_in_points_takes_the_smallest_that_keeps_it(tiny, images):
    points = distance(tiny, images)
    sizes = []
    tried = allocate(tiny, replace(IN_POINTS, points=100.0), images, points).info["tried"]
    most = max(entry["points"] for entry in tried)
    for lost in (0.5 * most, 0.1 * most):
        chosen = allocate(tiny, replace(IN_POINTS, points=lost), images, points)
        tried = chosen.info["tried"]
        assert len(tried) == 1 + allocation.TRIES
        kept = [entry["bytes"] for entry in tried if entry["points"] <= lost]
        assert chosen.info["bytes"] == min(kept) < tried[0]["bytes"]
        assert any(entry["points"] > lost for entry in tried)
        sizes.append(chosen.info["bytes"])
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_points_of_noise_stop_no_search(tiny, images, share):
    """A score that does not fall with the size: the most accurate model is kept, or the smallest."""
    exact = iter([50.0])
    scores = itertools.chain(exact, itertools.repeat(50 - 2 * share))
    chosen = allocate(tiny, replace(IN_POINTS, points=2.3), images, Points(lambda _model: next(scores), "mIoU"))
    low, high = bounds(tiny, IN_POINTS)
    assert low <= chosen.info["bytes"] < low + 0.1 * (high - low)


def test_agreement_is_the_share_of_places_with_the_class_of_the_exact_model(tiny, images):
    points = agreement(tiny, lambda: images.split(1))
    assert points.score(tiny) == 100
    changed = small_segformer(stages=4)
    changed.load_state_dict(tiny.state_dict())
    with torch.no_grad():
        first, second = tiny(images).logits.topk(2, 1).values.unbind(1)
        common = tiny(images).logits.argmax(1).mode().values.flatten()[0]
        changed.decode_head.classifier.bias[common] -= (first - second).median()
        same = tiny(images).logits.argmax(1) == changed(images).logits.argmax(1)
    assert 0 < same.double().mean() < 1
    assert points.score(changed) == 100 * same.double().mean().item()


def test_points_that_no_candidate_keeps_are_refused(tiny, images):
    with pytest.raises(
        ConfigError, match=r"^points 0\.001: the most accurate candidates lose [0-9.]+ of closeness: allow more$"
    ):
        allocate(tiny, replace(IN_POINTS, points=0.001), images, distance(tiny, images))


def test_group_sizes_that_fit_no_layer_are_refused(tiny, images):
    with pytest.raises(ConfigError, match="^group_sizes 5, 11 divide the inputs of no layer: choose 8, 16 or 32$"):
        allocate(tiny, replace(AUTO, group_sizes=(5, 11)), images)
    assert bounds(tiny, replace(AUTO, group_sizes=(5, 16))) == bounds(tiny, replace(AUTO, group_sizes=(4, 16)))


@TWO_STAGES
def test_a_zero_of_one_bit_takes_one_bit(tiny):
    (one, _), (two, _) = (bounds(tiny, replace(AUTO, ranges=Ranges(6, zero))) for zero in (1, 2))
    assert one < two


def test_a_budget_that_no_file_has_is_refused_with_both_limits(tmp_path, tiny, images):
    model = tiny
    low, _high = bounds(model)
    float32 = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    limits = f"between {math.ceil(low / 1e3) / 1e3} \\(the smallest candidates\\) and {float32:.1f} \\(float32\\)"
    for megabytes in (0.0, low / 1e6 - 1e-6, 2 * float32):
        recipe = replace(AUTO, megabytes=megabytes)
        with pytest.raises(ConfigError, match=f"^megabytes .* must lie {limits}: choose another budget$"):
            kind(recipe).check(model, recipe)
        models.save(model, tmp_path / "baseline")
        with pytest.raises(ConfigError, match="must lie between"):
            build(tmp_path / "baseline", recipe, tmp_path / "artifact", CPU, images)
        assert not (tmp_path / "artifact").exists()
    kind(AUTO).check(model, replace(AUTO, megabytes=math.ceil(low / 1e3) / 1e3))


def test_a_file_above_the_budget_is_refused(tmp_path, images):
    """Biases of zero become tiny ones, which float16 cannot hold, so that they take twice the bytes that were planned."""
    models.save(small_segformer(stages=2), tmp_path / "baseline")
    recipe = between(small_segformer(stages=2), 1.0)
    with pytest.raises(
        ModelError, match=r"^the artifact takes 0\.0[0-9]+ MB, more than megabytes 0\.0[0-9]+: allow more$"
    ):
        build(tmp_path / "baseline", recipe, tmp_path / "artifact", CPU, images)
    assert not (tmp_path / "artifact").exists()


def test_it_needs_images(tmp_path):
    models.save(small_segformer(), tmp_path / "baseline")
    with pytest.raises(ConfigError, match="weights auto calibrate on images of the train split"):
        build(tmp_path / "baseline", AUTO, tmp_path / "artifact", CPU)


def test_layers_that_are_not_chosen_stay_float(tiny, images):
    chosen = allocate(tiny, between(tiny, 0.5, replace(AUTO, layers=HEAD)), images)
    assert list(chosen.info["layers"]) == [f"decode_head.linear_projections.{i}.proj" for i in range(4)]
    assert chosen.recipe.layers == tuple(HEAD)


@pytest.mark.parametrize("recipe", [AUTO, IN_POINTS])
def test_layers_that_leave_nothing_to_choose_are_refused(tiny, recipe):
    with pytest.raises(ConfigError, match="^weights auto: all layers are convolutions with groups, which keep 8 bits"):
        kind(recipe).check(tiny, replace(recipe, layers=["*.dwconv.dwconv"]))


def test_the_words_say_the_budget():
    words = kind(AUTO).describe(AUTO)
    assert words == (
        "weights of each layer at one of 2, 3, 4, 8 bits, chosen for 1 MB (gptq on 4 images, groups of one of 8, 16), "
        "float32 activations"
    )
    assert "chosen for 0.3 points" in kind(AUTO).describe(replace(AUTO, megabytes=None, points=0.3))
