"""Each stage's deps name the rooms that it runs, and no other."""

import re

import pytest
import yaml
from closure import ROOT, rooms

STAGES = {
    name: stage
    for folder in ("", "stages", "models", "metrics")
    for name, stage in yaml.safe_load((ROOT / folder / "dvc.yaml").read_text())["stages"].items()
}


def _code_deps(stage):
    return [d for d in stage.get("do", stage)["deps"] if d.startswith(("src/", "stages/"))]


def _problems(name, deps):
    script = ROOT / "stages" / f"{name}.py"
    expected = {f"stages/{name}.py"} | rooms(script)
    return sorted(expected - set(deps)), sorted(set(deps) - expected)


@pytest.mark.parametrize("name", list(STAGES))
def test_deps_are_the_rooms_of_the_import_closure(name):
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
    assert cmd.startswith(f"python -m stages.{name} --")
    assert len((ROOT / "stages" / f"{name}.py").read_text().splitlines()) <= 40


def test_every_script_is_a_stage():
    assert {p.stem for p in (ROOT / "stages").glob("*.py")} == {"__init__", *STAGES}


# From the lowest to the highest: a room imports none that stands after it.
ROOMS = [
    "base",
    "scenes",
    "data",
    "models",
    "quant",
    "engines",
    "evaluation",
    "training",
    "deploy",
    "methods",
    "lanes",
    "workspace",
    "report",
    "runs",
    "predictions",
    "commands",
    "cli",
]
APART = {  # rooms that reach fewer
    "tracking": {"base"},
    "lineage": {"base"},
    "report": {"base", "data", "evaluation"},
    "warm": set(),
}


def test_every_room_has_its_place():
    source = ROOT / "src" / "segquant"
    found = {path.stem for path in source.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert found - {"__init__", "__main__"} == {*ROOMS, *APART}


@pytest.mark.parametrize("room", [*ROOMS, *APART])
def test_no_room_imports_a_higher_one(room):
    source = ROOT / "src" / "segquant"
    below = (
        APART[room]
        if room in APART
        else {*ROOMS[: ROOMS.index(room)], *({"lineage", "tracking"} if room == "commands" else ())}
    )
    single = source / f"{room}.py"
    for file in [single] if single.is_file() else sorted((source / room).rglob("*.py")):
        for path in rooms(file):
            other = path.removeprefix("src/segquant/").removesuffix(".py")
            assert other in below | {room}, f"{file.relative_to(source)} reaches {path}"


def test_only_tracking_imports_wandb():
    for file in (ROOT / "src").rglob("*.py"):
        if file.name != "tracking.py":
            assert not re.search(r"^\s*(import|from) wandb", file.read_text(), re.M), file
