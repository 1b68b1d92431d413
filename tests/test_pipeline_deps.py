"""Each stage's deps name the code that it runs, and no other."""

import re

import pytest
import yaml
from closure import ROOT, closure

STAGES = {
    **yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"],
    **yaml.safe_load((ROOT / "models" / "dvc.yaml").read_text())["stages"],
    **yaml.safe_load((ROOT / "metrics" / "dvc.yaml").read_text())["stages"],
}


def _code_deps(stage):
    return [d for d in stage.get("do", stage)["deps"] if d.startswith(("src/", "stages/"))]


def _problems(name, deps):
    script = ROOT / "stages" / f"{name}.py"
    wanted = {f"stages/{name}.py"} | closure(script)
    return sorted(wanted - set(deps)), sorted(set(deps) - wanted)


@pytest.mark.parametrize("name", list(STAGES))
def test_deps_are_the_import_closure(name):
    missing, extra = _problems(name, _code_deps(STAGES[name]))
    assert not missing, f"stage {name} runs these but does not name them; run tests/closure.py: {missing}"
    assert not extra, f"stage {name} names these but does not run them: {extra}"


@pytest.mark.parametrize("name", list(STAGES))
def test_the_check_notices_every_single_removal_and_addition(name):
    deps = _code_deps(STAGES[name])
    for dep in deps:
        assert _problems(name, [d for d in deps if d != dep])[0] == [dep]
    assert _problems(name, [*deps, "src/segquant/cli.py"])[1] == ["src/segquant/cli.py"]


@pytest.mark.parametrize("name", list(STAGES))
def test_the_command_runs_the_stages_own_thin_script(name):
    cmd = STAGES[name].get("do", STAGES[name])["cmd"]
    cmd = re.sub(r"\$\{\w+\.launcher\}", "python", cmd)
    assert cmd.startswith(f"python -m stages.{name} ")
    assert len((ROOT / "stages" / f"{name}.py").read_text().splitlines()) <= 40


def test_every_script_is_a_stage():
    assert {p.stem for p in (ROOT / "stages").glob("*.py")} == {"__init__", *STAGES}


BELOW = {  # DESIGN: a lower room never imports a higher one
    "config": set(),
    "data": {"config"},
    "models": {"config", "data"},
    "quant": {"config", "data", "models"},
    "evaluation": {"config", "data", "models", "quant"},
    "training": {"config", "data", "models", "quant", "evaluation"},
    "deploy": {"config", "data", "models", "quant", "evaluation", "training"},
    "tracking": {"config"},
    "lineage": {"config"},
    "report": {"config", "data", "evaluation"},
}
SHARED = {"__init__", "allocator", "errors", "fields", "files", "hub", "keys", "progress", "ranks", "entry", "hardware"}


@pytest.mark.parametrize("room", list(BELOW))
def test_no_room_imports_a_higher_one(room):
    base = ROOT / "src" / "segquant"
    files = [base / f"{room}.py"] if (base / f"{room}.py").is_file() else sorted((base / room).rglob("*.py"))
    for file in files:
        for path in closure(file):
            other = path.removeprefix("src/segquant/").split("/")[0].removesuffix(".py")
            assert other in BELOW[room] | SHARED | {room}, f"{file.relative_to(base)} reaches {path}"


def test_only_tracking_imports_wandb():
    for file in (ROOT / "src").rglob("*.py"):
        if file.name != "tracking.py":
            assert not re.search(r"^\s*(import|from) wandb", file.read_text(), re.M), file
