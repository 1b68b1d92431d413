"""The comparison of budgets that benchmarks/budgets.py makes."""

import copy
import csv
import json
import sys
from dataclasses import replace

import budgets
import pytest
import torch
from conftest import small_segformer

from segquant import models
from segquant.base import config
from segquant.base.errors import ConfigError, DataError


@pytest.fixture
def options(tmp_path, monkeypatch):
    """A command line, and what it writes."""
    monkeypatch.setattr(budgets, "IMAGES", 2)
    params = config.load()
    methods = dict(params.quant.methods)
    methods["int2"] = replace(methods["int2"], small_layers=None)  # all layers of this model are small
    params = replace(params, quant=replace(params.quant, methods=methods))
    monkeypatch.setattr(budgets.config, "load", lambda: params)
    model = small_segformer(stages=2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # as float16 can hold them
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    model.decode_head.classifier.weight.data *= 100
    models.save(model, tmp_path / "model")
    data = ("--data", "scenes", "--split", "validation", "--protocol", "fixed-64x64-v1", "--limit", "4")
    chosen = ("--methods", "int8,int2", "--budgets", "0.06,0.07", "--sets", "2")
    command = ["budgets.py", "--model", str(tmp_path / "model"), *data, *chosen, "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    return tmp_path / "out"


def test_each_method_has_a_line_for_each_set_and_a_second_run_adds_none(options, capsys):
    budgets.main()
    lines = (options / "results.csv").read_text()
    rows = list(csv.DictReader(lines.splitlines()))
    names = ["int8", "int2", "auto_0.06", "auto_0.07"]
    assert [(row["set"], row["method"]) for row in rows] == [(number, name) for number in "01" for name in names]
    size = {row["method"]: float(row["megabytes"]) for row in rows}
    moved = {(row["set"], row["method"]): float(row["divergence"]) for row in rows}
    assert size["int2"] < size["int8"] and size["auto_0.06"] <= 0.06 < size["auto_0.07"] <= 0.07
    assert moved["0", "int8"] == moved["1", "int8"] < moved["0", "int2"] != moved["1", "int2"]
    picture = (options / "front.svg").read_text()
    assert picture.startswith("<") and all(f">{name}<" in picture for name in ("int8", "int2", "auto"))
    capsys.readouterr()
    budgets.main()
    assert (options / "results.csv").read_text() == lines and len(capsys.readouterr().out.splitlines()) == 1
    noted = json.loads((options / "options.json").read_text())
    (options / "options.json").write_text(json.dumps(noted | {"recipes": noted["recipes"] | {"int2": "another"}}))
    with pytest.raises(ConfigError, match="out holds int2 of another recipe: give another --output$"):
        budgets.main()
    assert (options / "results.csv").read_text() == lines


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--methods", "int8,nothing", "--methods 'nothing' is unknown: choose from float32, "),
        ("--methods", "int2_static", "--methods 'int2_static' is unknown"),
        ("--methods", "int2_qat", "--methods 'int2_qat' is unknown"),  # a row of that name is int2 with --train
        ("--methods", "float8_dynamic", "--methods 'float8_dynamic': float8 activations need a CUDA device"),
        ("--budgets", "0.06,small", "--budgets 'small' is no number of megabytes: give some"),
        ("--budgets", "0.01", "^auto_0.01: megabytes 0.01 must lie between"),
        ("--sets", "0", "--sets must be at least 1, not 0"),
    ],
)
def test_a_method_that_there_is_not_stops_it_before_any_work(options, option, value, message, monkeypatch):
    command = [value if before == option else word for before, word in zip(["", *sys.argv], sys.argv, strict=False)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(ConfigError, match=message):
        budgets.main()
    assert not options.exists()


def test_results_of_other_options_are_kept_apart(options):
    options.mkdir()
    (options / "results.csv").write_text("set,method\n")
    (options / "options.json").write_text("{}")
    with pytest.raises(ConfigError, match="out holds results of other options: give another --output$"):
        budgets.main()
    assert (options / "options.json").read_text() == "{}"


def test_too_few_images_are_one_line(options, monkeypatch):
    monkeypatch.setattr(budgets, "IMAGES", 10**6)
    with pytest.raises(DataError, match="^2 sets take 2000000 train images, and there are [0-9]+: give fewer --sets$"):
        budgets.main()
    assert not options.exists()


@torch.no_grad()
def test_the_divergence_is_that_of_the_predictions(tiny):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert budgets.divergence(tiny, tiny, images) == 0
    changed = copy.deepcopy(tiny)
    changed.decode_head.classifier.bias[0] += 1
    p, q = (model(images).logits.double().softmax(1) for model in (tiny, changed))
    assert budgets.divergence(tiny, changed, images) == pytest.approx(
        (p * (p / q).log()).sum(1).mean().item(), rel=1e-4
    )
