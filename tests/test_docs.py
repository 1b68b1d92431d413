"""README and docs: every command is run here or marked as needing the hub or a GPU, every figure is the repository's."""

import csv
import json
import re
import shlex
import subprocess
from itertools import takewhile

import numpy as np
import pytest
import torch
import yaml
from clones import copied, sh
from conftest import ROOT
from transformers import EvalPrediction

from segquant.base.config import Eval
from segquant.cli import parser
from segquant.data.preprocessing import read_preprocessing
from segquant.data.sources import open_source
from segquant.engines.load import load
from segquant.evaluation.predict import predict, prepared

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {"sh", "sh hub", "sh gpu", "yaml", "python", "text"}
METHODS = ("float32", "int8", "int4", "int2", "auto", "int8_static")


def blocks(page):
    """(kind, text) of each fenced block."""
    fenced = re.findall(r"^( *)```([^\n]*)\n(.*?)^ *```$", page.read_text(), re.M | re.S)
    return [(kind, re.sub(rf"^{indent}", "", text, flags=re.M)) for indent, kind, text in fenced]


def commands(text):
    """Each command of a block: continued lines joined, comments removed."""
    lines = re.sub(r"\\\n *", "", text).splitlines()
    return [line for line in (re.sub(r"(^|\s)# .*", "", line).strip() for line in lines) if line]


def all_of(*kinds):
    shown = [(page, kind, line) for page in PAGES for kind, text in blocks(page) for line in commands(text)]
    return [pytest.param(page, line, id=f"{page.name}: {line[:60]}") for page, kind, line in shown if kind in kinds]


def table(page):
    """(headings, {method: its other cells}) of the page's table whose first column is `method`."""
    lines = iter(page.read_text().splitlines())
    heading = next(line for line in lines if line.startswith("| method |"))
    rows = [heading, *takewhile(lambda line: line.startswith("|"), lines)]
    headings, _, *cells = [row.strip("| ").split(" | ") for row in rows]
    return headings[1:], {method: values for method, *values in cells}


@pytest.fixture(scope="module")
def results():
    """The rows of the committed results.csv, by method."""
    shown = subprocess.run(["git", "show", "HEAD:metrics/results.csv"], cwd=ROOT, capture_output=True, text=True)
    if shown.returncode:
        pytest.skip("needs the repository's history, to know what was committed")
    return {row["method"]: row for row in csv.DictReader(shown.stdout.splitlines())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_says_what_it_is_and_is_well_formed(page):
    for kind, text in blocks(page):
        assert kind in KINDS, f"{page.name}: ```{kind}"
        if kind == "yaml":
            assert yaml.safe_load(text)
        if kind == "python":
            compile(text, page.name, "exec")


@pytest.mark.parametrize(("page", "command"), all_of("sh", "sh hub", "sh gpu"))
def test_every_command_takes_the_options_that_are_shown(page, command):
    for part in re.split(r"&&", command):
        words = shlex.split(part)
        assert words[0] in ("segquant", "dvc", "git", "make", "wandb"), part
        if words[0] == "segquant":
            parser().parse_args(words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in headings}, anchor


SHOWN = {  # heading in README and docs/reading-results.md -> columns of results.csv
    "algorithm": "{algorithm}",
    "engine": "{engine}",
    "mIoU %": "{mean_iou}",
    "loss (95 % interval)": "{loss_points} ({loss_low} to {loss_high})",
    "pixel acc %": "{overall_accuracy}",
    "agree %": "{agreement}",
    "MB": "{size_mb}",
    "x smaller": "{compression}",
    "quantized %": "{quantized_percent}",
    "quantize s": "{quantize_seconds}",
    "p50 ms": "{latency_ms}",
    "x float32 (min to max)": "{speedup} ({speedup_min} to {speedup_max})",
    "x eager": "{speedup_eager}",
    "memory MB": "{memory_mb}",
}
SHORT = ["mIoU %", "loss (95 % interval)", "MB", "x eager", "agree %"]


@pytest.mark.parametrize(
    ("page", "headings"), [("README.md", SHORT), ("docs/reading-results.md", list(SHOWN))], ids=["README", "long"]
)
def test_a_table_is_the_committed_results(results, page, headings):
    shown, rows = table(ROOT / page)
    assert shown == headings
    assert list(rows) == list(results)
    for method, row in results.items():
        assert rows[method] == [SHOWN[heading].format(**row) for heading in headings]


def test_readme_recommends_by_the_committed_results(results):
    text = re.sub(r"\n  (?=\w)", " ", (ROOT / "README.md").read_text())
    advice = re.findall(r"^- \*\*(\w+)\*\* is (?:the )?([^:]*): (.*)", text, re.M)
    within = {name: row for name, row in results.items() if name != "float32" and float(row["loss_points"]) <= 1}
    titles = ["smallest and the fastest", "as fast, and more accurate", "fastest in PyTorch"]
    assert [title for _, title, _ in advice] == titles
    for method, title, words in advice:
        row = results[method]
        rivals = [r for r in within.values() if "PyTorch" not in title or r["engine"] == "pytorch"]
        if "smallest" in title:
            assert float(row["size_mb"]) <= 1.1 * min(float(rival["size_mb"]) for rival in rivals)
        if "fast" in title:
            assert float(row["speedup_eager"]) >= max(float(rival["speedup_eager"]) for rival in rivals) / 1.2
        if "more accurate" in title:
            assert float(row["loss_points"]) < float(results[advice[0][0]]["loss_points"]) - 0.1
        figures = set(re.findall(r"\d+\.\d+", words))
        assert figures and figures <= {row["speedup_eager"], row["compression"], row["loss_points"]}
        assert ("no loss" in words) == (float(row["loss_points"]) <= 0)


def test_the_table_of_a_gpu_is_its_measured_results(results):
    measured = json.loads((ROOT / "metrics/hardware_results/nvidia-h100-80gb-hbm3.json").read_text())
    small, large = measured["default_run"]["methods"], measured["large_run"]["methods"]
    _, rows = table(ROOT / "docs/distributed.md")
    assert rows.keys() == small.keys()
    for method, cells in rows.items():
        there, here = large.get(method, {}), results.get(method, {})
        figures = [small[method]["mean_iou"], there.get("mean_iou"), there.get("agreement")]
        gpu, big, agreement = (f"{100 * figure:.2f}" if figure else "not run" for figure in figures)
        assert cells == [gpu, here.get("mean_iou", "not run" if method == "int3" else "unavailable"), big, agreement]
    again = json.loads((ROOT / "metrics/hardware_results/nvidia-h200.json").read_text())
    rates = again["evaluation"]
    figures = [*rates["engine_images_per_second"], *rates["plain_images_per_second"], *rates["ratio"]]
    words = re.sub(r"\s+", " ", (ROOT / "docs/distributed.md").read_text())
    shape = (
        "scores {:.0f} images/s ({:.0f} to {:.0f}), the usual script beside it {:.1f} ({:.1f} to {:.1f}): {:.1f} times"
    )
    assert shape.format(*figures[:7]) in words and "the speed ({:.1f} to {:.1f})".format(*figures[7:]) in words
    for method in ("int8", "float8"):
        assert again["default_run"]["methods"][method]["mean_iou"] == small[method]["mean_iou"]


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_the_lines_that_deploy_a_file_give_the_class_map_of_predict(tmp_path, capsys):
    (text,) = (text for _, text in blocks(ROOT / "docs/deploying.md") if "onnxruntime.InferenceSession" in text)
    assert len(text.strip().splitlines()) <= 12
    artifact = ROOT / "models/trained/int2_static"
    row = open_source("scenes", "validation", 1)[0]
    (tmp_path / "photo.png").write_bytes(row["image"])
    text = text.replace("photo.jpg", str(tmp_path / "photo.png"))
    names = {}
    exec(text.replace("models/quantized/int2_static", str(artifact)), names)
    settings = Eval()
    model = prepared(load(artifact).model, settings)
    (prediction,) = predict(model, [row], "fixed-512x512-v1", settings, read_preprocessing(artifact))
    expected = prediction.classes.numpy()
    assert names["classes"].shape == expected.shape and len(np.unique(expected)) > 3
    assert (names["classes"] == expected).mean() > 0.999
    assert expected.max() < len(names["names"]) and "%" in capsys.readouterr().out


def test_the_metric_in_docs_gives_a_trainer_the_mean_iou():
    (text,) = (text for _, text in blocks(ROOT / "docs/models.md") if "compute_metrics" in text)
    names = {}
    exec(text, names)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5, 4, 6)).astype(np.float32)
    labels = rng.choice([*range(5), 255], size=(3, 16, 24))
    scores = names["compute_metrics"](EvalPrediction(predictions=logits, label_ids=labels))
    upsampled = torch.nn.functional.interpolate(torch.from_numpy(logits), (16, 24), mode="bilinear")
    classes, counted = upsampled.argmax(1).numpy(), labels != 255
    both = [np.sum((classes == c) & (labels == c)) for c in range(5)]
    either = [np.sum(((classes == c) | (labels == c)) & counted) for c in range(5)]
    assert scores["mean_iou"] == pytest.approx(np.mean(np.divide(both, either)))
    assert scores["overall_accuracy"] == pytest.approx(np.sum(both) / np.sum(counted))


FOLDERS = {path.name for path in (ROOT / "src" / "segquant").iterdir() if path.is_dir()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_package_that_is_named_exists(page):
    """`quant/gptq.py`, `tests/data/` or `methods.py`, but no pattern such as `commands/NAME.py`."""
    for name in re.findall(
        r"`((?:[\w./]+/)?[a-z_0-9]+\.py|(?:src|tests|stages|benchmarks)/[a-z_0-9/]*)(?=[`:])", page.read_text()
    ):
        bases = ROOT, ROOT / "src" / "segquant", *(ROOT / "src" / "segquant" / folder for folder in FOLDERS)
        assert any((base / name).exists() for base in bases), name


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A small clone with what the pages' commands name: photographs, and a data set laid out in its own way."""
    folder = tmp_path_factory.mktemp("docs") / "segquant"
    params = copied(folder, METHODS)
    sh(folder, "git add -A && git commit -qm start && dvc repro -q && git add -A && git commit -qm results")
    source = open_source("scenes", "validation", 2)
    for i in range(2):
        for name, data in (
            (f"photos/{i}.png", "image"),
            (f"fields/photos/val/{i}.jpg", "image"),
            (f"fields/masks/val/{i}_mask.png", "annotation"),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source[i][data])
    (folder / "fields/names.txt").write_text("\n".join(source.classes))
    (shown,) = (yaml.safe_load(text) for kind, text in blocks(ROOT / "docs/data.md") if kind == "yaml")
    params["data"] |= shown["data"]
    (folder / "fields.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(page, clone):
    """In the order of the page, from a clean state; with MAKEFLAGS, `make` takes this environment for its own."""
    for kind, text in blocks(page):
        if kind == "python":
            # the clone has fewer methods
            (clone / "block.py").write_text(text.replace("quantized/int2_static", "trained/int2_static"))
            (clone / "photo.jpg").write_bytes(open_source("scenes", "validation", 1)[0]["image"])
            sh(clone, "python block.py")
        if kind == "sh":
            for command in commands(text):
                sh(clone, f"export MAKEFLAGS=STAMP=Makefile; {command}")
    sh(clone, "git checkout -q HEAD -- . && dvc checkout -q --force")
