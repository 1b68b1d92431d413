"""Names, values and reasons of strangers as they leave segquant: the raw bytes on a terminal, in logs, CSV, Markdown."""

import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT, ade20k_folder, small_segformer
from forked import segquant
from PIL import Image
from samples import HARDWARE, SPEED, metrics

from segquant import models
from segquant.base.files import csv_rows, write_json
from segquant.evaluation.counts import write_counts

TITLE, CLEAR = "\x1b]0;owned\x07", "\x1b[2J"
HOSTILE = [
    f"{TITLE}tree",
    f"{CLEAR}wall",
    f"{CLEAR}sky\rfake",
    "sea\nINFO segquant: fake",
    "\x9b31mred",
    "\u202edlrow",
    "del\x7fete",
    "half\ud800",
    "=cmd|' /C calc'!A0",
    "@SUM(1)",
    "+road",
    "-",
    "</details><h1>x",
    "a|b",
    "`x`",
    "![x](http://e/x.png)",
    "[red]x[/red]",
    "[/x]",
    ":car:",
]
GOOD = ["Bäume", "道路", "שמיים", "e\u0301tage", "👩‍🚀", "semi;colon", "a, b", '"quoted"']
NAMES = HOSTILE + GOOD + [f"class {i}" for i in range(len(HOSTILE + GOOD), 150)]
DATA_NAMES = [re.sub("[\r\n\ud800]", "%", name) for name in NAMES]  # data.classes has a name per line
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(*texts):
    """No text has a control but the end of a line."""
    for text in texts:
        found = CONTROLS.findall(text)
        assert not found, found


def shown(name):
    """A name as a terminal shows it."""
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), name).replace("\n", "\\n")


def params_file(path, **sections):
    """The repository's params.yaml with other sections, escapes in double quotes as YAML allows them."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, section in sections.items():
        params[name] |= section
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return path


def in_folder(folder, *command, code=0):
    """What a command prints in a folder, both streams together."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "DVC_NO_ANALYTICS": "1", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == code, output
    return output


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """`segquant run` of a model with hostile names on labels of the same names; its output and its folder."""
    folder = tmp_path_factory.mktemp("hostile")
    tiny = small_segformer(stages=1)
    tiny.config.id2label = dict(enumerate(NAMES))
    tiny.config.label2id = {name: i for i, name in enumerate(NAMES)}
    models.save(tiny, folder / "tiny")
    ade20k_folder(folder / "data", "validation", 2)
    (folder / "names.txt").write_text("\n".join(DATA_NAMES))
    patterns = {"images": "images/{split}/*.jpg", "annotations": "annotations/{split}/*.png", "ignore": [150, 255]}
    params = params_file(
        folder / "params.yaml",
        data={"classes": str(folder / "names.txt"), **patterns},
        quant={"methods": {"float32": {"weights": "float32"}}, "packed": {}, "method": "float32"},
        speed={"input_size": [64, 64], "batch_sizes": [1], "runs": 2, "warmup": 1},
    )
    options = ["--params", params, "--model", folder / "tiny", "--data", folder / "data", "--split", "validation"]
    options += ["--protocol", "fixed-64x64-v1", "--verbose", "--output", folder / f"out{CLEAR}"]
    return segquant("run", *options), segquant("run", *options, "--label-map", "by_position"), options[-1]


def test_a_run_shows_and_logs_no_control(done):
    refused, output, folder = done
    assert output.returncode == 0, output.stderr[-2000:]
    log = (folder / "run.log").read_text()
    harmless(output.stdout, output.stderr, log)
    assert all("out\\x1b[2J" in text for text in (output.stdout, output.stderr, log))
    assert (
        refused.returncode == 2
        and "is '\\x1b[2Jsky fake' in the model but '\\x1b[2Jsky%fake' in the data set" in refused.stderr
    )
    harmless(refused.stdout, refused.stderr)


def test_the_csv_of_a_run_has_no_formula_and_is_read_back(done):
    text = (done[-1] / "classes" / "float32.csv").read_text()
    harmless(text)
    rows = list(csv_rows(text))
    for line, row in zip(text.splitlines()[1:], rows, strict=True):
        assert not re.match(r'\d+,"?\s*[=+@-]', line)
        assert row["name"] == shown(DATA_NAMES[int(row["id"])])
    assert {"=cmd|' /C calc'!A0", "@SUM(1)", "+road", "-", "</details><h1>x"} <= {row["name"] for row in rows}
    assert "'=cmd|' /C calc'!A0," in text and ",'-," in text
    assert all(name in text for name in GOOD[:-2])


def test_predictions_show_no_control_of_classes_and_files(done, tmp_path):
    artifact = done[-1] / "artifacts" / "float32"
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, name in enumerate((f"{TITLE}a", "b\nINFO c", "[red]d", "\u202ee")):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)).save(photos / f"{name}.png")
    (photos / os.fsdecode(b"\x9b31mf.png")).write_bytes((photos / "[red]d.png").read_bytes())
    options = ["--artifact", artifact, "--protocol", "fixed-64x64-v1", "--output"]
    plain = segquant("predict", photos, *options, tmp_path / "plain")
    assert plain.returncode == 0, plain.stderr
    harmless(plain.stdout, plain.stderr)
    lines = plain.stdout.splitlines()
    assert len(lines) == 5 and all(line.startswith(str(tmp_path / "plain")) for line in lines)
    assert any("[red]d.png: " in line for line in lines) and any("\\udc9b31mf.png: " in line for line in lines)
    as_json = segquant("predict", photos, *options, tmp_path / "json", "--json")
    harmless(as_json.stdout, as_json.stderr)
    assert len(json.loads(as_json.stdout)) == 5
    (photos / f"{TITLE}broken.jpg").write_bytes(b"x")
    failed = segquant("predict", photos, *options, tmp_path / "none")
    assert failed.returncode == 2 and failed.stderr.count("error: ") == 1
    harmless(failed.stdout, failed.stderr)
    assert "\\x1b]0;owned\\x07broken.jpg" in failed.stderr


def test_methods_and_mistakes_in_parameters_show_no_control(tmp_path):
    recipe = {"weights": "int8", "layers": [f"{TITLE}*[red]x[/red]"]}
    params = params_file(
        tmp_path / "a.yaml", quant={"methods": {"float32": {"weights": "float32"}, "odd": recipe}, "packed": {}}
    )
    params.write_text(params.read_text().replace("method: int4", "method: odd"))
    listed = segquant("methods", "--params", params)
    assert listed.returncode == 0 and "\\x1b]0;owned\\x07*[red]x[/red]" in listed.stdout, listed.stderr
    harmless(listed.stdout, listed.stderr)
    for change in ({"quant": {f"a{CLEAR}": 1}}, {"data": {"source": f"a{CLEAR}"}}, {"eval": {"device": f"a{CLEAR}"}}):
        wrong = segquant("methods", "--params", params_file(tmp_path / "b.yaml", **change))
        harmless(wrong.stdout, wrong.stderr)
    source = params_file(tmp_path / "c.yaml")
    folder = tmp_path / f"{TITLE}\nerror: fake"
    options = ("--model", folder, "--data", "scenes", "--split", f"x{CLEAR}", "--output", tmp_path / "out")
    missing = segquant("run", "--params", source, *options)
    assert missing.returncode == 2 and len(missing.stderr.splitlines()) == 1
    harmless(missing.stderr)
    refused = segquant("methods", f"--{CLEAR}x.png")
    assert refused.returncode == 2 and "\\x1b[2Jx.png" in refused.stderr
    harmless(refused.stderr)


def test_a_comparison_shows_no_control(tmp_path):
    images = [(f"{i:02d}", np.array([[0, 0, 50 + i], [0, 1, 100], [1, 1, 60]])) for i in range(20)]
    for name in ("float32", f"{CLEAR}int8"):
        write_counts(tmp_path / f"{name}.parquet", images, NAMES[:2], f"fixed-64x64-v1{TITLE}")
    files = [tmp_path / f"{name}.parquet" for name in ("float32", f"{CLEAR}int8")]
    done = segquant("compare", *files, "--metrics", tmp_path)
    assert done.returncode == 0, done.stderr
    harmless(done.stdout)
    assert "fixed-64x64-v1\\x1b]0;owned\\x07" in done.stdout
    unknown = segquant("compare", f"{CLEAR}no", "int8", "--metrics", tmp_path)
    assert unknown.returncode == 2 and "\\x1b[2Jno" in unknown.stderr
    harmless(unknown.stderr)


def hostile_metrics(folder):
    """Results of which every text is hostile."""
    everything = " ".join(name for name in HOSTILE if "\ud800" not in name)
    texts = {"algorithm": f"{TITLE}[red]x[/red]|@SUM", "protocol": f"fixed{CLEAR}<h1>", "engine": "=cmd|[/x] :car:"}
    write_json(folder / "accuracy" / "float32.json", {**metrics(0.7, 9_000_000), **texts})
    write_json(folder / "accuracy" / "int8.json", {"failed": f"{everything} half\ud800"})
    write_json(folder / "accuracy" / "int4.json", {**metrics(0.6, 3_000_000), **texts})
    write_json(folder / "speed" / "float32.json", {**SPEED, "device": f"gpu{TITLE}[link=http://e]x[/link]"})
    write_json(folder / "speed" / "int4.json", {"failed": f"killed {everything}"})
    write_json(folder / "hardware.json", HARDWARE)
    (folder / "classes").mkdir()
    for method in ("float32", "int4"):
        (folder / "classes" / f"{method}.csv").write_text("id,name,pixels,iou,accuracy\n0,'=cmd,5,0.5,0.5\n")
    return folder


def test_a_report_shows_no_control_and_no_markup_of_rich(tmp_path):
    folder = hostile_metrics(tmp_path / "metrics")
    done = segquant("report", "--metrics", folder)
    assert done.returncode == 4, done.stderr
    harmless(done.stdout, done.stderr)
    for text in ("\\x1b]0;owned\\x07[red]x[/red]|@SUM", "[link=http://e]x[/link]", "[/x] :car:", "half\\ud800"):
        assert text in done.stdout
    as_json = segquant("report", "--metrics", folder, "--json")
    harmless(as_json.stdout)
    assert json.loads(as_json.stdout)["int8"]["failed"].endswith("half\ud800")


def test_a_terminal_gets_no_sequence_but_those_of_colours(tmp_path):
    """Names in a bar, a log line above it and a table, on a terminal: rich's own sequences, and none of a name."""
    code = """
import logging, sys
from segquant.base.entry import setup_logging
from segquant.base.progress import progress
from segquant.report import terminal
from segquant.report.results import from_json
names = eval(sys.argv[1])
setup_logging()
for name in names:
    with progress(total=1, desc=name, unit="step") as bar:
        logging.getLogger("segquant").warning("about %s", name)
        bar.update()
keys = dict(mean_iou=0.5, mean_accuracy=0.5, overall_accuracy=0.5, size_bytes=1e6, compression=2.0, n_images=1)
results = from_json({name: {**keys, "protocol": name, "algorithm": name, "engine": name} for name in names})
terminal.show(results)
terminal.show_several({name: results for name in names})
"""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", code, repr(HOSTILE)]
    process = subprocess.Popen(command, stdout=child, stderr=child, env=environment)
    os.close(child)
    raw = b""
    try:
        while part := os.read(parent, 65536):
            raw += part
    except OSError:  # the other end is closed
        pass
    assert process.wait() == 0, raw.decode()
    text = raw.decode()
    assert "owned\x07" not in text and "\x1b[2J" not in text and "\x1b]" not in text
    harmless(re.sub(r"\x1b\[[0-9;?]*[mAKhl]|\r", "", text))
    for name in ("[red]x[/red]", "[/x]", ":car:", "\\x1b]0;owned\\x07tree", "sea\\nINFO segquant: fake"):
        assert text.count(name) >= 2, name


@pytest.fixture
def reviewed(tmp_path):
    """review.md of a repository in which parameters, values and results are hostile, and what the command printed."""
    clone = tmp_path / "clone"
    clone.mkdir()
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    methods = {name: {"weights": name} for name in ("float32", "int8", "int4")}
    params_file(clone / "params.yaml", quant={"methods": methods, "packed": {}})
    (clone / "dvc.yaml").write_text(
        "stages:\n  s:\n    cmd: 'true'\n    params: [data, quant]\n    metrics:\n"
        "    - metrics/accuracy/float32.json: {cache: false}\n"
    )
    write_json(clone / "metrics" / "accuracy" / "float32.json", metrics(0.7, 9_000_000))
    write_json(clone / "metrics" / "accuracy" / "gone.json", metrics(0.7, 9_000_000))
    rows = "".join(f'"{name}"\n' for name in ("gone", "1. <h1>x|`"))
    (clone / "metrics" / "results.csv").write_text(f"method\n{rows}")
    write_json(clone / "metrics" / "accuracy" / "1. <h1>x|`.json", metrics(0.7, 9_000_000))
    in_folder(clone, "git", "init", "-qb", "main")
    in_folder(clone, sys.executable, "-m", "dvc", "init", "-q")
    in_folder(clone, "git", "add", "-A")
    in_folder(clone, *git, "commit", "-qm", "start")
    hostile_metrics(clone / "metrics" / "new")
    for path in (clone / "metrics" / "new").iterdir():
        in_folder(clone, "cp", "-r", path, clone / "metrics")
    everything = " ".join(name for name in HOSTILE if "\ud800" not in name)
    params_file(clone / "params.yaml", quant={"methods": methods, "packed": {}}, data={"source": everything})
    printed = in_folder(clone, sys.executable, "-m", "segquant", "review", "--base", "main", "--output", "r.md", code=3)
    return (clone / "r.md").read_text(), printed


def test_a_review_has_no_markup_of_strangers(reviewed):
    text, printed = reviewed
    harmless(text, printed)
    codes = re.sub(r"```mermaid\n.*?```", "", text, flags=re.S)
    codes = re.sub(r"<code>[^<>|`*@\[\]\\\n]*</code>", "", codes)
    assert codes.count("<code>") == 0 and text.count("<code>") >= 6
    own = {"<!-- segquant review -->", "<details>", "</details>", "<summary>", "</summary>"}
    assert set(re.findall(r"<[^>]*>", codes)) == own and codes.count("</details>") == 2
    assert not re.search(r"[@\[\]\\]|://", codes) and codes.count("`") == 0
    tables = [part.splitlines() for part in re.findall(r"(?:^\|.*\|\n)+", text, re.M)]
    assert len(tables) == 3
    assert all(len({line.count("|") for line in lines}) == 1 for lines in tables)
    assert "- gone is no longer there." in text
    assert "&lt;" not in text and "&#60;&#47;details&#62;&#60;h1&#62;x" in text and "a&#124;b" in text
