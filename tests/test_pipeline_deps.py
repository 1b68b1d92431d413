"""Each stage's deps name the rooms that it runs, and no other."""

import re
import subprocess

import pytest
import yaml
from closure import ROOT, rooms

from stages.code import SOURCE, room_digest

STAGES = {
    name: stage
    for folder in ("", "stages", "models", "metrics")
    for name, stage in yaml.safe_load((ROOT / folder / "dvc.yaml").read_text())["stages"].items()
}


def _script(name):
    """The script that a stage runs: a packed method's are those of the others."""
    if name.startswith("code_"):
        return "code"
    return "quantize" if name == "pack" else name.removesuffix("_packed")


def _code_deps(stage):
    return [d for d in stage.get("do", stage)["deps"] if d.startswith(("src/", "stages/", "metrics/code/"))]


def _expected(name):
    """A lane depends on the digest of its code; the stage that makes the digest, on the code."""
    if f"code_{_script(name)}" in STAGES:
        return {f"metrics/code/{_script(name)}.json"}
    scripts = ["code", name.removeprefix("code_")] if name.startswith("code_") else [name]
    return {dep for script in scripts for dep in (f"stages/{script}.py", *rooms(ROOT / "stages" / f"{script}.py"))}


def _problems(name, deps):
    expected = _expected(name)
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
    script, of = _script(name), name.removeprefix("code_") if name.startswith("code_") else ""
    assert cmd.startswith(f"python -m stages.{script} --{f'stage {of} --' if of else ''}")
    assert len((ROOT / "stages" / f"{script}.py").read_text().splitlines()) <= 40


def test_every_script_is_a_stage():
    stages = set(map(_script, STAGES))
    assert {p.stem for p in (ROOT / "stages").glob("*.py")} == {"__init__", *stages}


def test_a_digest_of_code_names_the_room_that_changed_and_not_what_editors_write(tmp_path):
    room = tmp_path / "room"
    (room / "__pycache__").mkdir(parents=True)
    for name in ("a.py", "page.html"):
        (room / name).write_text("x")
    digests = [room_digest(room)]
    for name in ("__pycache__/a.cpython-311.pyc", ".a.py.swp", "a.py~", "#a.py#", ".#a.py", ".DS_Store"):
        (room / name).write_text("x")
    assert room_digest(room) == digests[0]
    for change in (
        lambda: (room / "a.py").write_text("y"),
        lambda: (room / "a.py").rename(room / "b.py"),
        lambda: (room / "page.html").unlink(),
    ):
        change()
        digests.append(room_digest(room))
    assert len(set(digests)) == 4


def test_a_digest_of_code_covers_every_file_of_the_source():
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [path for path in tracked.stdout.splitlines() if not SOURCE.fullmatch(path.rpartition("/")[2])] == []


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
    "pace": set(),
    "hello": set(),
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
