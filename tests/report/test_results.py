"""Result, what is read from the committed metrics, and the columns of every table."""

import csv
import io
import json
import re

import pytest
from conftest import ROOT
from samples import CLASSES_CSV, METHODS, SPEED, metrics, write_metrics

from segquant.base.errors import SegquantError
from segquant.base.files import csv_text
from segquant.report import classes, tables
from segquant.report.checked import read_hardware
from segquant.report.columns import ALL, COLUMN, LANES, RANKED
from segquant.report.notes import footnotes
from segquant.report.results import ACCURACY, CLASSES, PREDICTED, collect, from_json, measured, to_json

COMMITTED = (ROOT / "metrics" / "results.csv").read_text()


@pytest.fixture(scope="module")
def committed():
    """The committed results: the JSON files of metrics/, and the intervals of results.csv."""
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(COMMITTED))}
    content = to_json(collect(ROOT / "metrics", [*rows, "float8_dynamic"]))
    for method, row in rows.items():
        if row["loss_low"]:
            content[method]["loss_interval"] = [float(row["loss_low"]), float(row["loss_high"])]
    return from_json(content)


def test_a_result_is_what_the_json_files_hold(tmp_path):
    write_metrics(tmp_path)
    results = collect(tmp_path, METHODS)
    assert list(results) == ["float32", "float8_dynamic", "int2"]
    result, missing = results["int2"], results["float8_dynamic"]
    assert (result.method, result.missing, missing.missing) == ("int2", None, "unavailable: no CUDA")
    assert result.loss == pytest.approx(15.0) and result.size_mb == 2.0 and result.quantize_seconds == 12.34
    assert list(measured(results)) == ["float32", "int2"]
    content = to_json(results)
    assert content["int2"] == {
        **json.loads((tmp_path / ACCURACY.format("int2")).read_text()),
        "quantize": json.loads((tmp_path / "quantize" / "int2.json").read_text()),
        "speed": SPEED,
    }
    assert content["float8_dynamic"] == {"unavailable": "no CUDA"}
    content["int2"]["loss_interval"] = [14.5, 15.5]
    assert to_json(from_json(content)) == content and from_json(content)["int2"].loss_interval == (14.5, 15.5)


def test_a_graph_is_compared_with_pytorchs_eager_float32():
    eager = {"median": 4.0, "min": 3.0, "max": 5.0}
    graph = {**SPEED, "engine": "onnxruntime", "relative_to_eager": eager}
    (result,) = from_json({"static": {"speed": graph}}).values()
    assert result.speedup_eager == eager and result.relative_latency == 0.25
    on_cpu, on_gpu = {**graph, "device": "cpu"}, {**SPEED, "device": "NVIDIA H100"}
    results = from_json({"float32": {"speed": on_gpu}, "int8": {"speed": on_gpu}, "static": {"speed": on_cpu}})
    assert results["int8"].speedup_eager and results["static"].speedup_eager is None  # eager float32's on the CPU
    assert results["static"].relative_latency is None
    del graph["relative_to_eager"]
    assert result.speedup_eager is None and result.relative_latency is None
    (result,) = from_json({"static": metrics(0.7, 1e6)}).values()
    assert result.speedup_eager is None and result.timing is None and result.not_timed is None


def test_results_csv_is_made_from_the_committed_metrics_byte_for_byte(committed):
    assert tables.to_csv(committed) == COMMITTED


def test_class_loss_csv_is_made_from_the_committed_classes_byte_for_byte(committed, tmp_path):
    done = list(measured(committed))
    for method in done:
        (tmp_path / method).mkdir()
        text = (ROOT / "metrics" / "classes" / f"{method}.csv").read_text()
        (tmp_path / method / "classes.csv").write_text(text)
    made = classes.to_csv(classes.read_classes(tmp_path, done), done)
    assert made == (ROOT / "metrics" / "class_loss.csv").read_text()


def test_keys_are_unique_and_ranks_are_an_order():
    assert len(COLUMN) == len(ALL) and all(column.meaning for column in (*ALL, *LANES))
    assert [column.rank for column in RANKED] == list(range(len(RANKED)))
    assert {end for column in ALL for end in column.ends or ()} <= COLUMN.keys()


def test_markdown_shows_a_range_behind_its_figure(committed):
    columns = [COLUMN[key] for key in ("method", "mean_iou", "loss_points", "speedup")]
    lines = tables.markdown([committed["int8_static"]], columns).splitlines()
    row = next(row for row in csv.DictReader(io.StringIO(COMMITTED)) if row["method"] == "int8_static")
    loss = "{loss_points} ({loss_low} to {loss_high})".format(**row)
    speed = "{speedup} ({speedup_min} to {speedup_max})".format(**row)
    assert lines == [
        "| method | mIoU % | loss | x float32 |",
        "| --- | ---: | ---: | ---: |",
        f"| int8_static | {row['mean_iou']} | {loss} | {speed} |",
    ]


def test_values_are_not_rounded(committed):
    row = next(row for row in tables.values(committed) if row["method"] == "int4")
    assert row["mean_iou"] == 100 * committed["int4"].mean_iou and list(row) == COMMITTED.splitlines()[0].split(",")


def test_csv_text_quotes_and_leaves_none_empty():
    assert csv_text([["a,b", None], ['"', 1.5]], ["x", "y"]) == 'x,y\n"a,b",\n"""",1.5\n'


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("accuracy", [], "Input should be a valid dictionary"),
        ("accuracy", {"mean_iou": float("nan")}, "mean_iou: Input should be a finite number"),
        ("accuracy", {"mean_iou": 65.4}, "mean_iou: Input should be less than or equal to 1"),
        ("accuracy", {"mean_iou": "0.6"}, "mean_iou: Input should be a valid number"),
        ("accuracy", {"size_bytes": 0}, "size_bytes: Input should be greater than or equal to 1"),
        ("accuracy", {"protocol": None}, "protocol: Input should be a valid string"),
        ("accuracy", {"failed": ["x"]}, "failed: Input should be a valid string"),
        ("accuracy", {"skipped": 3}, "skipped: Input should be a valid list"),
        ("accuracy", {"dtype": 16}, "dtype: Input should be a valid string"),
        ("accuracy", {"compile": "no"}, "compile: Input should be a valid boolean"),
        ("quantize", {"taken_from": 3}, "taken_from: Input should be a valid string"),
        ("quantize", 4, "Input should be a valid dictionary"),
        ("speed", {"relative_to_float32": 1.5}, "relative_to_float32: Input should be a valid dictionary"),
        ("speed", {"latency_ms": {"p50": "fast"}}, "latency_ms.p50: Input should be a valid number"),
        ("speed", {"latency_ms": {}}, "latency_ms.p50: Field required"),
        ("speed", {"engine": None}, "engine: Input should be a valid string"),
        ("speed", {"engine_version": None}, "engine_version: Input should be a valid string"),
        ("speed", {"threads": 0}, "threads: Input should be greater than or equal to 1"),
        ("speed", {"input_size": [256]}, "input_size: List should have at least 2 items"),
        ("speed", {"input_size": [256, -1]}, "input_size.1: Input should be greater than or equal to 1"),
        ("speed", {"lanes": [4]}, "lanes.0: Input should be a valid dictionary"),
        ("speed", {"lanes": [{}]}, "lanes.0.engine: Field required"),
        ("accuracy", {"size_bytes": 10**400}, "size_bytes: "),
    ],
)
def test_a_file_of_another_form_is_one_line(kind, change, message, tmp_path):
    """An editor or a merge may leave one."""
    write_metrics(tmp_path)
    path = tmp_path / kind / "int2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change if isinstance(change, dict) else change))
    with pytest.raises(SegquantError) as error:
        collect(tmp_path, METHODS)
    assert str(error.value).startswith(f"{path} is not as segquant writes it ({message}") and "\n" not in str(
        error.value
    )


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("accuracy", "n_images"),
        ("accuracy", "compression"),
        ("quantize", "seconds"),
        ("speed", "engine_version"),
        ("speed", "threads"),
    ],
)
def test_a_file_that_lacks_a_key_is_one_line(kind, key, tmp_path):
    write_metrics(tmp_path)
    path = tmp_path / kind / "int2.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(SegquantError, match=re.escape(f"{path} is not as segquant writes it ({key}: Field required)")):
        collect(tmp_path, METHODS)


def test_every_committed_result_has_the_form(committed):  # `collect` checks it
    assert len(committed) > 10


@pytest.mark.parametrize(("key", "value"), [("protocol", "fixed-512x512-v1"), ("n_images", 5)])
def test_methods_that_were_scored_otherwise_than_float32_have_no_loss(key, value, tmp_path):
    write_metrics(tmp_path)
    path = tmp_path / "accuracy/int2.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(SegquantError, match=f"int2.json has {key} {value!r}, and float32's .*: run `dvc repro`"):
        collect(tmp_path, METHODS)


@pytest.mark.parametrize("files", [(ACCURACY, CLASSES), PREDICTED])
def test_methods_that_were_scored_on_as_many_other_images_have_no_loss(files, tmp_path):
    """As a run leaves them that was interrupted after data.source was changed."""
    accuracy, classes = files
    for method in ("float32", "int2"):
        for name, text in ((accuracy, json.dumps(metrics(0.7, 2_000_000))), (classes, CLASSES_CSV.format(0.5))):
            path = tmp_path / name.format(method)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    other = tmp_path / classes.format("int2")
    other.write_text(other.read_text() + "5,sky,0,0.0,\n")  # a class that int2 alone predicts
    assert collect(tmp_path, METHODS, *files)["int2"].loss == 0
    other.write_text(other.read_text().replace("300", "301"))
    with pytest.raises(SegquantError, match=f"^{other} has other labelled pixels than float32's, .*: run `dvc repro`$"):
        collect(tmp_path, METHODS, *files)
    (tmp_path / classes.format("float32")).unlink()
    assert collect(tmp_path, METHODS, *files)["int2"].loss == 0


def test_autocast_without_a_word_on_compiling_is_a_note(tmp_path):
    write_metrics(tmp_path)
    for method in ("float32", "int2"):
        path = tmp_path / ACCURACY.format(method)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "bfloat16"}))
    assert "Evaluated with autocast to bfloat16." in footnotes(collect(tmp_path, METHODS))


@pytest.mark.parametrize("change", [{"instructions": 3}, {"processor": 3}, {"cores": "x"}, []])
def test_hardware_of_another_form_is_one_line(change, tmp_path):
    hardware = {"processor": "p", "instructions": [], "cores": 2, "gpu": None}
    (tmp_path / "hardware.json").write_text(json.dumps(hardware))
    assert read_hardware(tmp_path) == hardware
    (tmp_path / "hardware.json").write_text(json.dumps(hardware | change if change else change))
    with pytest.raises(SegquantError, match="hardware.json is not as segquant writes it"):
        read_hardware(tmp_path)
