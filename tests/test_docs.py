"""README and docs: every command is run here or marked as needing the hub or a GPU, every figure is the repository's."""

import csv
import re
import shlex
import subprocess

import pytest
import yaml
from clones import copied, sh
from conftest import ROOT

from segquant.cli import parser
from segquant.data.sources import open_source

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KINDS = {"sh", "sh hub", "sh gpu", "yaml", "python", "text"}
METHODS = ("float32", "int8", "int4", "int3", "int2")


def blocks(page):
    """(kind, text) of each fenced block."""
    found = re.findall(r"^( *)```([^\n]*)\n(.*?)^ *```$", page.read_text(), re.M | re.S)
    return [(kind, re.sub(rf"^{indent}", "", text, flags=re.M)) for indent, kind, text in found]


def commands(text):
    """Each command of a block, lines that go on joined, comments left out."""
    lines = re.sub(r"\\\n *", "", text).splitlines()
    return [line for line in (re.sub(r"(^|\s)# .*", "", line).strip() for line in lines) if line]


def all_of(*kinds):
    found = [(page, kind, one) for page in PAGES for kind, text in blocks(page) for one in commands(text)]
    return [pytest.param(page, one, id=f"{page.name}: {one[:60]}") for page, kind, one in found if kind in kinds]


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
            assert anchor in {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}, anchor


def test_the_table_in_readme_is_the_committed_results():
    shown = subprocess.run(["git", "show", "HEAD:metrics/results.csv"], cwd=ROOT, capture_output=True, text=True)
    if shown.returncode:
        pytest.skip("needs the repository's history, to know what was committed")
    rows = {row["method"]: row for row in csv.DictReader(shown.stdout.splitlines())}
    lines = re.findall(r"^\| (\w+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    table = {name: cells.split(" | ") for name, cells in lines if name in rows}
    assert list(table) == list(rows)
    for name, row in rows.items():
        loss = f"{row['loss_points']} ({row['loss_low']} to {row['loss_high']})"
        speed = f"{row['speedup']} ({row['speedup_min']} to {row['speedup_max']})"
        assert table[name] == [
            row["algorithm"],
            row["engine"],
            row["mean_iou"],
            loss,
            row["overall_accuracy"],
            row["agreement"],
            row["size_mb"],
            row["compression"],
            row["quantized_percent"],
            row["quantize_seconds"],
            row["latency_ms"],
            speed,
            row["speedup_eager"],
            row["memory_mb"],
        ]


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
    (own,) = (yaml.safe_load(text) for kind, text in blocks(ROOT / "docs/data.md") if kind == "yaml")
    params["data"] |= own["data"]
    (folder / "fields.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(page, clone):
    """In the order of the page, from a clean state; with MAKEFLAGS, `make` takes this environment for its own."""
    for kind, text in blocks(page):
        if kind == "python":
            (clone / "block.py").write_text(text)
            sh(clone, "python block.py")
        if kind == "sh":
            for command in commands(text):
                sh(clone, f"export MAKEFLAGS=STAMP=Makefile; {command}")
    sh(clone, "git checkout -q HEAD -- . && dvc checkout -q --force")
