"""One version in one place, a format in every artifact, and pins that agree with one another."""

import json
import re
import subprocess
import sys
import tomllib
from functools import partial
from importlib import metadata

import onnx
import pytest
import torch
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import segquant
from segquant.base.config import Graph, Recipe
from segquant.base.errors import ModelError
from segquant.base.files import digest, write_json
from segquant.deploy.build import build_graph
from segquant.deploy.transformers_folder import export_transformers
from segquant.engines.load import load, load_quantized
from segquant.quant.artifacts import FORMAT, describe_artifact, save_missing
from segquant.quant.build import build

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def test_the_version_stands_in_one_place_and_what_cites_it_agrees():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    shown = subprocess.run([sys.executable, "-m", "segquant", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (shown.stdout, shown.stderr, shown.returncode) == (f"segquant {segquant.__version__}\n", "", 0)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == segquant.__version__
    assert re.findall(r"^## (\d\S*)", CHANGELOG, re.M)[0] == segquant.__version__
    assert f"`{FORMAT}`" in CHANGELOG


def pytorch(exported, folder):
    build(exported / "model", Recipe("int8"), folder, torch.device("cpu"))


def onnxruntime(exported, folder):
    build_graph(exported / "model", Graph(engine="onnxruntime", weights="float32"), folder, exported / "onnx")


def openvino(exported, folder):
    build_graph(exported / "model", Graph(engine="openvino", weights="float32"), folder, exported / "onnx")


def unavailable(_exported, folder):
    save_missing(Recipe("int8"), {"unavailable": "needs a GPU"}, folder)


def failed(_exported, folder):
    save_missing(Recipe("int8"), {"failed": "ValueError: wrong"}, folder)


KINDS = (pytorch, onnxruntime, openvino, unavailable, failed)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def artifact(request, exported_model, tmp_path_factory):
    """A kind of artifact, and its folder; tests only read it."""
    folder = tmp_path_factory.mktemp("kinds") / "a"
    request.param(exported_model, folder)
    return request.param, folder


def test_every_artifact_carries_its_format_and_the_same_bytes_in_a_later_release(
    artifact, exported_model, tmp_path, monkeypatch
):
    kind, folder = artifact
    assert json.loads((folder / "quantization.json").read_text())["format"] == FORMAT
    monkeypatch.setattr(segquant, "__version__", "98.76.54")
    kind(exported_model, tmp_path / "a")
    now, later = ({file.name: file.read_bytes() for file in path.iterdir()} for path in (folder, tmp_path / "a"))
    assert later == now


def test_what_others_load_carries_the_versions_of_their_formats(exported_model, tmp_path):
    """Those of ONNX and of transformers."""
    graph = onnx.load(exported_model / "onnx" / "float32.onnx")
    assert graph.ir_version and [opset.version for opset in graph.opset_import] == [20]
    assert json.loads((exported_model / "onnx" / "export.json").read_text())["opset"] == 20
    build(exported_model / "model", Recipe("int8", layers="linear"), tmp_path / "linear", torch.device("cpu"))
    export_transformers(tmp_path / "linear", tmp_path / "exported")
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["transformers_version"] == metadata.version("transformers")
    assert config["quantization_config"]["quant_method"] == "torchao"


HERE = int(FORMAT.removeprefix("segquant-"))
UPDATE, AGAIN = "update segquant, whose changelog says which version reads it", "quantize again"
FORMATS = {
    "newer": (f"segquant-{HERE + 1}", UPDATE),
    "much newer": ("segquant-10", UPDATE),
    "older": (f"segquant-{HERE - 1}", AGAIN),
}
NO_FORMATS = (None, HERE, [FORMAT], "other-2", FORMAT + "\n", "segquant-9\x1b]0;x\a", "segquant-" + "9" * 5000)


def refusal(folder, stored, tmp_path):
    """What every reader says of the artifact with another format and the right digest."""
    info = json.loads((folder / "quantization.json").read_text()) | {"format": stored}
    del info["digest"]
    write_json(tmp_path / "quantization.json", {**info, "digest": digest(info)})
    lines = set()
    for read in (
        describe_artifact,
        load,
        load_quantized,
        partial(export_transformers, folder=tmp_path.with_name("new")),
    ):
        with pytest.raises(ModelError) as error:
            read(tmp_path)
        lines.add(str(error.value).removeprefix(f"{tmp_path}/quantization.json "))
    (line,) = lines
    return line


@pytest.mark.parametrize(("stored", "remedy"), FORMATS.values(), ids=FORMATS)
def test_another_format_is_refused_in_a_line_that_says_what_to_do(stored, remedy, artifact, tmp_path):
    expected = f"has format {stored}, and segquant {segquant.__version__} reads {FORMAT}: {remedy}"
    assert refusal(artifact[1], stored, tmp_path) == expected


@pytest.mark.parametrize("stored", NO_FORMATS, ids=lambda stored: repr(stored)[:20])
def test_what_is_no_format_is_refused_and_not_shown(stored, tmp_path):
    failed(None, tmp_path / "a")
    assert refusal(tmp_path / "a", stored, tmp_path) == f"names no format of segquant's: {AGAIN}"


def pins(name):
    """{package: the version that it is pinned to} of a file in the repository."""
    lines = [line.partition(" #")[0] for line in (ROOT / name).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}


def test_the_two_files_of_pins_agree_and_give_whole_versions():
    direct, others = pins("requirements.txt"), pins("constraints.txt")
    assert direct and others
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in [*direct.values(), *others.values()])
    assert {name: others[name] for name in direct.keys() & others} == {
        name: direct[name] for name in direct.keys() & others
    }


def test_the_package_asks_for_what_is_pinned():
    """In the ranges of pyproject.toml, so that the weekly tests on the newest releases install all of it."""
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    ranges = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"] + extras)}
    pinned = pins("requirements.txt")
    for name, requirement in ranges.items():
        version = pinned.get(name) or pins("constraints.txt").get(name)
        assert name == "segquant" or requirement.specifier.contains(version), name
    jobs = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())["jobs"]
    install = next(step["run"] for step in jobs["newest"]["steps"] if "--editable" in step.get("run", ""))
    others = re.search(r'"\.\[dev\]" (.*)', install)[1].split()
    assert pinned.keys() - ranges.keys() == set(map(canonicalize_name, others))


def test_the_audit_counts_a_package_that_nobody_answers_for_as_a_hole():
    """Without --strict, pip-audit finds no hole in any package where it does not reach the advisories."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/weekly.yml").read_text())["jobs"]
    (audit,) = [step["run"] for step in jobs["audit"]["steps"] if "run" in step and step["run"].startswith("pip-audit")]
    assert {"--strict", "requirements.txt", "constraints.txt"} <= set(audit.split())
