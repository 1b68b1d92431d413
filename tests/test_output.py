"""An output folder is new, or the same command made it; it holds nothing that is read, and one process writes to it."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, ade20k_folder
from forked import segquant

from segquant import runs
from segquant.base import config
from segquant.base.errors import ConfigError, ModelError
from segquant.base.files import write_text
from segquant.base.output import MARKER, check, claimed, holds_anything
from segquant.cli import parser
from segquant.evaluation import sensitivity
from segquant.workspace import earlier, forget


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(message, *arguments):
    done = segquant(*arguments)
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
    assert done.returncode == 2 and line.startswith("error: --output ") and message in line, done.stderr


def test_what_a_run_reads_is_never_its_output(tiny_folder, tmp_path):
    """Each replaced or removed the user's files, with exit code 0 or after minutes of work."""
    data = ade20k_folder(tmp_path / "mine/shards", "validation", 2)
    model = tmp_path / "mine/float32"
    tiny_folder.rename(model)
    before = contents(tmp_path)
    for output in (tmp_path / "mine", data, data / "out", model, model / "deep/out"):
        for force in ([], ["--force"]):
            options = ["--model", model, "--data", data, "--split", "validation", "--output", output, *force]
            for command in (["run", "--methods", "float32"], ["pt2e"], ["sensitivity", "--bits", "2"]):
                refused("which is read, contain one another: give another --output", *command, *options)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["run", "predict", "sensitivity", "pt2e"])
def test_a_folder_of_other_things_stays_as_it_is(command, tiny_folder, tmp_path):
    for name in ("partial/a", "reference/b", "shards/c", "artifacts/float32/d", "onnx/e", "sensitivity.csv"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    before = contents(tmp_path)
    options = ["--model", tiny_folder, "--data", "scenes", "--split", "validation"]
    options = ["photo.jpg", "--artifact", tiny_folder] if command == "predict" else options
    refused(
        "holds files that segquant did not write: give a new folder, or --force",
        command,
        *options,
        "--output",
        tmp_path / "mine",
    )
    assert contents(tmp_path) == before


def test_a_folder_belongs_to_the_command_that_made_it(tmp_path):
    folder = tmp_path / "a/out"
    check(folder, "run")
    with claimed(folder, "run"):
        (folder / "results.json").write_text("{}")
    check(folder, "run")
    with pytest.raises(ConfigError, match="holds what `segquant run` wrote: give a new folder, or --force"):
        check(folder, "predict")
    check(folder, "predict", force=True)
    (tmp_path / "empty").mkdir()
    check(tmp_path / "empty", "run")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="file is a file: give a folder"):
        check(tmp_path / "file", "run", force=True)
    for text in ("", "[1]", "{}", "\\xff"):  # no marker of ours
        (folder / MARKER).write_text(text)
        with pytest.raises(ConfigError, match="holds files that segquant did not write"):
            check(folder, "run")


def test_a_link_to_itself_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for folder in (tmp_path / "loop", tmp_path / "loop/out"):
        with pytest.raises((ConfigError, OSError)):
            check(folder, "run", [tmp_path])
            with claimed(folder, "run"):
                pass


def test_a_link_is_the_folder_that_it_leads_to(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    with pytest.raises(ConfigError, match="contain one another"):
        check(tmp_path / "link/out", "run", [tmp_path / "data"])
    check(tmp_path / "out", "run", [tmp_path / "data", "owner/name", "scenes"], force=True)


def test_a_new_folder_is_gone_where_nothing_was_written(tmp_path):
    for old in (False, True):
        if old:
            (tmp_path / "out").mkdir()
        with pytest.raises(ValueError), claimed(tmp_path / "out", "run"):
            raise ValueError
        assert (tmp_path / "out").exists() == old
    with pytest.raises(ValueError), claimed(tmp_path / "new/x/../out", "run"):
        raise ValueError
    with pytest.raises(ValueError), claimed(tmp_path / "new/deep/out", "run"):
        raise ValueError
    assert not (tmp_path / "new").exists()


def test_a_run_leaves_nothing_of_the_one_before(tiny_folder, quick, tmp_path):
    """`compare` took a method of the earlier run, of another model, for one of this."""
    for name in ("a", "b"):
        ade20k_folder(tmp_path / name, "validation", 2)
    common = ["run", "--params", quick, "--model", tiny_folder, "--split", "validation", "--output", tmp_path / "out"]
    common += ["--protocol", "fixed-64x64-v1"]
    one, two = ["--data", tmp_path / "a"], ["--data", tmp_path / "a", "--data", tmp_path / "b"]

    def counted():
        return {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("confusion/*.parquet")}

    assert segquant(*common, *one, "--methods", "float32,int8").returncode == 0
    (tmp_path / "out/results.json").unlink()  # as if it had been interrupted before all were scored
    (tmp_path / "out/.tmp-segquant-0a1b2c3d-abcdefgh").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert segquant(*common, *one, "--methods", "float32").returncode == 0
    assert (
        counted() == {"confusion/float32.parquet"} and not (tmp_path / "out/.tmp-segquant-0a1b2c3d-abcdefgh").exists()
    )
    (tmp_path / "out/results.json").unlink()
    assert segquant(*common, *two, "--methods", "float32").returncode == 0
    assert counted() == {"data/a/confusion/float32.parquet", "data/b/confusion/float32.parquet"}
    before = contents(tmp_path / "out")
    sorted((tmp_path / "b/annotations/validation").iterdir())[1].write_bytes(b"x")
    assert segquant(*common, *two, "--methods", "float32", "--limit", "1").returncode == 0
    assert segquant(*common, *two, "--methods", "float32").returncode == 2  # reads the second label too
    after = contents(tmp_path / "out")
    assert json.loads(after["data/a/manifest.json"])["splits"]["validation"]["images"] == 1
    assert json.loads(after["results.json"])["a"]["float32"]["n_images"] == 1 and before.keys() >= after.keys()
    assert after["notes.txt"] == b"mine"


def test_a_forced_run_removes_nothing_of_the_users(tiny_folder, quick, tmp_path):
    mine = tmp_path / "out/accuracy/mine.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    options = ["--data", "scenes", "--split", "validation", "--limit", "1", "--protocol", "fixed-64x64-v1", "--force"]
    options += ["--params", quick, "--methods", "float32", "--output", tmp_path / "out"]
    assert segquant("run", "--model", tiny_folder, *options).returncode == 0
    assert mine.read_text() == "mine"


def test_what_the_user_adds_is_never_replaced(tmp_path):
    """Files in folders that are replaced whole were gone, and a link led a run to replace the model that it read."""
    out, other = tmp_path / "out", tmp_path / "other"
    for _ in range(2):
        with claimed(out, "run") as claim:
            write_text(out / "a/x.json", "ours")
            write_text(out / "b/nested/y", "ours")
            claim.check(out / "a", out / "b", out / "none")
    other.mkdir()
    (out / "a/mine").write_text("mine")
    (out / "b/z").write_text("mine")
    (out / "c").symlink_to(other)
    (out / "run.log").symlink_to(out / "a/mine")
    (out / "a/.tmp-segquant-x").mkdir()  # of a process that was killed
    (out / "a/.tmp-segquant-x/y").write_text("half")
    before = contents(tmp_path)
    with claimed(out, "run") as claim:
        for path in ("a", "b/z", "run.log"):
            for write in (claim.check, lambda path: write_text(path, "ours")):
                with pytest.raises(ConfigError, match="segquant did not write it: move it, or give another --output"):
                    write(out / path)
        for write in (claim.check, lambda path: write_text(path, "ours")):
            with pytest.raises(ConfigError, match="lies behind a link that leads out of .*/out: remove the link"):
                write(out / "c/x")
        write_text(out / "a/x.json", "ours")
    after = contents(tmp_path)
    assert {name: before[name] for name in before if "/." not in name} == {n: after[n] for n in after if "/." not in n}


OTHER = """
import sys
from pathlib import Path
from segquant.base.files import write_text
from segquant.base.output import claimed
with claimed(Path(sys.argv[1]), "run"):
    write_text(Path(sys.argv[1], "x"), "the other's")
"""


def test_a_folder_that_was_removed_meanwhile_is_left_to_the_next_run(tmp_path):
    """The results of two runs were mixed."""
    out = tmp_path / "o"
    with pytest.raises(ConfigError, match="was removed or replaced while this wrote to it"), claimed(out, "run"):
        write_text(out / "x", "this one's")
        shutil.rmtree(out)
        subprocess.run([sys.executable, "-c", OTHER, out], check=True)
        write_text(out / "x", "this one's")
    assert (out / "x").read_text() == "the other's"


def test_a_record_that_was_cut_off_or_is_foreign_names_no_file(tmp_path):
    out = tmp_path / ".tmp-segquant-not/out"  # a name as of a temporary folder, around the output
    with claimed(out, "run"):
        write_text(out / "x", "ours")
    (tmp_path / "mine").write_text("mine")
    outside = "".join(f"{json.dumps(str(name))}\n" for name in (tmp_path / "mine", "../../mine", "a/../x"))
    (out / ".segquant.files").write_text('"x"\n' + outside + '["y"]\nz"\n"cut\\"')
    (out / "y").write_text("mine")
    with claimed(out, "run") as claim:
        assert claim.known == {"x"}
        with pytest.raises(ConfigError, match="segquant did not write it"):
            write_text(out / "y", "ours")


def test_the_record_of_a_run_after_a_killed_one_is_that_of_an_undisturbed_run(tmp_path):
    def killed(folder):
        with suppress(KeyboardInterrupt), claimed(folder, "run"):
            write_text(folder / "z", "")
            write_text(folder / "gone", "")
            (folder / "gone").unlink()
            raise KeyboardInterrupt

    killed(tmp_path / "a")
    for name in ("a", "b"):
        with claimed(tmp_path / name, "run"):
            for file in "mza":
                write_text(tmp_path / name / file, "")
    first, second = ((tmp_path / name / ".segquant.files").read_text() for name in ("a", "b"))
    assert first == second == '"a"\n"m"\n"z"\n'


def test_results_that_now_lie_behind_a_link_stay(tmp_path):
    """They were moved elsewhere, with a link in their place, and the next run removed them."""
    out, archive = tmp_path / "out", tmp_path / "archive"
    with claimed(out, "run"):
        write_text(out / "data/e/accuracy/float32.json", "{}")
        write_text(out / "speed/float32.json", "{}")
    (out / "data/e").rename(archive)
    (out / "data/e").symlink_to(archive)
    with claimed(out, "run") as claim:
        assert len(earlier(out, claim)) == 2
        with pytest.raises(ConfigError, match="lies behind a link that leads out of .*: remove the link"):
            forget(out, claim)
    assert (archive / "accuracy/float32.json").exists() and (out / "speed/float32.json").exists()


def test_an_output_whose_name_is_no_utf8_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="is no UTF-8: give another name"):
        check(tmp_path / os.fsdecode(b"o\xe9"), "run")


def test_an_export_is_not_written_over_the_current_folder(tmp_path, monkeypatch):
    """It was replaced, and the shell was nowhere; `.` ended in a message about a temporary file."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "../here", tmp_path / "here"):
        assert holds_anything(Path(name))
    assert not holds_anything(Path("new")) and not holds_anything(tmp_path / "new")


def test_a_folder_that_was_removed_stays_removed(tmp_path):
    """Its removal hid the reason why the run ended."""
    with pytest.raises(ValueError, match="reason"), claimed(tmp_path / "out", "run"):
        shutil.rmtree(tmp_path / "out")
        raise ValueError("reason")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_command_made_meanwhile_is_left_to_it(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        check(folder, "run")
        with claimed(folder, "predict"):
            write_text(folder / "x.png", "")
    with pytest.raises(ConfigError, match="holds what `segquant predict` wrote"), claimed(tmp_path / "a", "run"):
        pass
    with claimed(tmp_path / "b", "run", force=True) as claim:
        assert claim.known == {"x.png"}


BOUND = """
import subprocess, sys
from segquant.base.output import check
from pathlib import Path
data, output = map(Path, sys.argv[1:])
subprocess.run(["mount", "--bind", data, output], check=True)
check(output / "new", "run", [data], force=True)
"""


def test_a_folder_mounted_a_second_time_is_the_same(tmp_path):
    unshare = ["unshare", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs Linux namespaces")
    for name in ("data", "out"):
        (tmp_path / name).mkdir()
    command = [*unshare, sys.executable, "-c", BOUND, tmp_path / "data", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "contain one another" in done.stderr


def test_a_run_is_refused_before_it_replaces_what_the_user_added(tiny_folder, quick, tmp_path):
    options = ["--data", "scenes", "--split", "validation", "--limit", "1", "--protocol", "fixed-64x64-v1"]
    options += ["--params", quick, "--methods", "float32", "--output", tmp_path / "out"]
    assert segquant("run", "--model", tiny_folder, *options).returncode == 0
    assert segquant("run", "--model", tiny_folder, *options).returncode == 0
    for name in ("artifacts/float32/notes.md", "shards/mine.txt", "reference/x", "partial/y", "speed/float32.json"):
        path = tmp_path / "out" / name
        kept = path.read_bytes() if path.exists() else None
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(tiny_folder) if kept else path.write_text("mine")
        before = contents(tmp_path)
        for force in ([], ["--force"]):
            done = segquant("run", "--model", tiny_folder, *options, *force)
            assert done.returncode == 2 and "segquant did not write it" in done.stderr
        assert contents(tmp_path).keys() == before.keys()
        path.unlink()
        if kept:
            path.write_bytes(kept)


def test_a_model_that_changes_during_a_run_gives_no_result(tiny_folder, tmp_path, monkeypatch):
    """int8 was compared with another float32 than the one that was scored."""
    states = iter("ab")
    monkeypatch.setattr(runs, "digests", lambda baseline: next(states))
    params = replace(config.load(ROOT / "params.yaml"), protocol="fixed-64x64-v1")
    options = {"data": ["scenes"], "split": "validation", "limit": 1, "methods": ["float32"]}
    with pytest.raises(ModelError, match="changed while it was read: run it again"):
        runs.run(params, model=str(tiny_folder), output=tmp_path / "out", **options)
    assert not list((tmp_path / "out").glob("accuracy/*")) and not (tmp_path / "out/results.json").exists()


HOLD = """
import sys, time
from pathlib import Path
from segquant.base.output import claimed
with claimed(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    """One reported float32 on 6 images and int2 on 3, and their difference as a loss."""
    command = [sys.executable, "-c", HOLD, tmp_path / "out"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        message = f"is in use by process {process.pid}: wait for it, or give another folder"
        with pytest.raises(ConfigError, match=message), claimed(tmp_path / "out", "run"):
            pass
        process.kill()  # nothing needs hands afterwards
    with claimed(tmp_path / "out", "run"):
        assert json.loads(Path(tmp_path / "out" / MARKER).read_text())["command"] == "run"


def test_sensitivity_holds_its_folder_before_it_works(tiny_folder, tmp_path, monkeypatch):
    """It measured for minutes, and then could not write."""
    monkeypatch.setattr(sensitivity, "layers", lambda *_: pytest.fail("the work began"))
    output = tmp_path / "out"
    options = ["--model", tiny_folder, "--data", "scenes", "--split", "validation", "--limit", 1, "--output", output]
    arguments = parser().parse_args(["sensitivity", *map(str, options)])
    with claimed(output, "sensitivity"), pytest.raises(ConfigError, match="is in use by process"):
        arguments.main(arguments)
