import csv
import io
import re

import pytest
from samples import HARDWARE, METHODS, RECIPES, SPEED, write_metrics, write_predictions
from samples import metrics as made

from segquant.base.classes import ADE20K
from segquant.base.files import write_json
from segquant.data.palette import palette
from segquant.evaluation.bootstrap import METRICS
from segquant.report import classes, page, plots, tables, terminal, training
from segquant.report.columns import ALL, LANES
from segquant.report.notes import _minutes, footnotes
from segquant.report.results import ACCURACY, collect, failures, from_json, measured, to_json


@pytest.fixture
def metrics(tmp_path):
    return write_metrics(tmp_path)


def _changed(folder, **methods):
    """The results in a folder with other keys for some methods."""
    content = to_json(collect(folder, METHODS))
    return from_json(content | {method: content.get(method, {}) | keys for method, keys in methods.items()})


def test_the_table_shows_the_loss_in_points_and_the_notes_what_is_unavailable(metrics, capsys):
    terminal.show(collect(metrics, METHODS), HARDWARE)
    text = capsys.readouterr().out
    line = next(x for x in text.splitlines() if x.startswith("int2"))
    assert line.split()[1:5] == ["hqq", "pytorch", "55.00", "15.00"]
    assert "12.3" in line.split()
    assert "fixed-64x64-v1, 2 images" in text
    assert "Testium 9 (avx2), 2 cores" in text
    assert "float8_dynamic is unavailable: no CUDA." in text


def test_a_method_and_a_timing_that_failed_are_notes(metrics, capsys):
    killed = {**made(0.6, 2_000_000), "speed": {"failed": "timing ended with code -9"}}
    results = _changed(metrics, onnx={"failed": "RuntimeError: x"}, int8=killed)
    terminal.show(results, HARDWARE)
    text = capsys.readouterr().out
    assert "onnx failed: RuntimeError: x." in text and "int8 failed in timing: timing ended with code -9." in text
    assert failures(results) == {"int8": "timing ended with code -9", "onnx": "RuntimeError: x"}
    assert not any(line.startswith("onnx ") and "pytorch" in line for line in text.splitlines())


def test_brackets_are_text(metrics, capsys):
    terminal.show(_changed(metrics, onnx={"unavailable": "not installed: pip install 'segquant[onnx]'"}))
    scores = {"first": 0.5, "second": 0.5, "difference": 0.0, "low": 0.0, "high": 0.0}
    comparison = {**dict.fromkeys(METRICS, scores), "n_images": 20, "protocol": "p", "resamples": 9}
    terminal.show_comparison("a[/b].parquet", "[red]", comparison)
    text = capsys.readouterr().out
    assert "pip install 'segquant[onnx]'." in text and "a[/b].parquet" in text and "[red]" in text


@pytest.mark.parametrize("width", [80, 120, 220])
def test_no_figure_is_cut_on_a_terminal(metrics, width, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    terminal.show(_changed(metrics, int8_static_qat={**made(0.70004, 2_000_000), "speed": SPEED}))
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in text and "..." not in text
    lines = text.splitlines()
    for method, cells in (("int2", ["55.00", "15.00"]), ("int8_static_qat", ["70.00", "0.00"])):
        line = next(x for x in lines if x.startswith(method))
        assert line.split()[0] == method and set(cells) < set(line.split()) and (width == 220) == ("hqq" in line)
        assert len(line) <= width
    shown = len(re.split(r"\s{1,}(?=\S)", lines[0]))
    assert shown > {80: 8, 120: 12, 220: 20}[width] and "x eager" in lines[0] and "MB" in lines[0]
    left_out = re.search(r"(\d+) more columns on a wider terminal", text)
    assert bool(left_out) == (width < 220)


def test_every_engine_and_batch_size_that_was_measured_is_shown(metrics, capsys):
    results = collect(metrics, METHODS)
    rows = tables.cells(tables.lanes(results), LANES)
    assert [row[:3] for row in rows] == [
        [method, engine, batch] for engine in ("eager", "compile") for batch in "14" for method in ("float32", "int2")
    ]
    by = {tuple(row[:3]): row for row in rows}
    assert by["int2", "eager", "4"][3:] == ["210", "230", "5.25", "1.05", "0.90", "1.20", "10", "", ""]
    assert by["int2", "compile", "1"][-1] == "31"
    assert set(by["int2", "compile", "4"][3:]) == {""}
    terminal.show(results, HARDWARE)
    text = capsys.readouterr().out
    assert "5.25" in text and "int2, compile, batch 4: torch.compile failed: no compiler." in text


def test_the_notes_name_autocast_and_skipped_images(metrics):
    notes = footnotes(_changed(metrics, float32={"dtype": "bfloat16", "compile": True, "skipped": ["a", "b"]}))
    assert "Evaluated with autocast to bfloat16, compiled." in notes and "float32 skipped 2 images." in notes


def test_times_of_the_cpu_are_not_attributed_to_a_gpu(metrics):
    with_gpu = {**HARDWARE, "gpu": "NVIDIA H200, 580.1", "memory_gb": 25}
    assert "on Testium 9 (avx2), 2 cores, 25 GB;" in " ".join(footnotes(collect(metrics, METHODS), with_gpu))
    on_gpu = _changed(metrics, float32={"speed": {**SPEED, "device": "NVIDIA H200"}})
    assert "on NVIDIA H200;" in " ".join(footnotes(on_gpu, with_gpu))


def test_data_sets_stand_side_by_side(metrics, capsys):
    other = _changed(metrics, int2={"mean_iou": 0.60, "n_images": 7})
    terminal.show_several({"mine": collect(metrics, METHODS), "yours": other}, HARDWARE)
    text = capsys.readouterr().out
    line = next(x for x in text.splitlines() if x.startswith("int2"))
    assert line.split() == ["int2", "55.00", "15.00", "99.00", "60.00", "10.00", "99.00", "2.00", "5.00", "210", "1.05"]
    assert text.count("Speed: eager") == 1 and "mine: " not in text


def test_the_csv_has_a_line_for_each_measured_method(metrics):
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(collect(metrics, METHODS)))))
    assert [x["method"] for x in lines] == ["float32", "int2"]
    assert float(lines[1]["mean_iou"]) == 55.0
    assert float(lines[1]["size_mb"]) == 2.0
    assert float(lines[1]["speedup"]) == 1.05


def test_without_float32_there_is_no_loss(metrics):
    results = collect(metrics, ["int2"])
    assert results["int2"].loss is None
    assert tables.cells(results.values(), ALL)[0][:5] == ["int2", "hqq", "pytorch", "55.00", ""]


def test_training_is_shown_by_class(metrics, tmp_path):
    write_json(metrics / ACCURACY.format("int2_qat"), {**made(0.68, 2_000_000), "algorithm": "qat"})
    write_json(metrics / "quantize" / "int2_qat.json", {"seconds": 1200.0, "taken_from": "models/trained/int2_qat"})
    pictures = write_predictions(metrics, {"float32": 0.9, "int2": 0.6, "int2_qat": 0.8, "int8": 0.89}, 1)
    results = collect(metrics, [*METHODS, "int2_qat"])
    compared = training.trained(RECIPES, measured(results))
    assert compared == {"int2_qat": ["float32", "int2", "int2_qat"]}
    by_class = classes.read_classes(metrics / "predictions", compared["int2_qat"])
    headings, table = training.class_table(by_class, compared["int2_qat"])
    assert headings[:5] == ["class", "pixels %", "IoU float32", "IoU int2", "IoU int2_qat"]
    assert table == [
        ["tree", "75.00", "90.0", "60.0", "80.0", "50.0", "50.0", "50.0"],
        ["floor", "25.00", "25.0", "25.0", "25.0", "", "", ""],
    ]
    tree, floor = by_class
    assert (tree.name, tree.share, tree.iou["float32"]) == ("tree", 75.0, pytest.approx(90))
    losses = [[result.loss(method) for method in ("int2", "int2_qat", "int4")] for result in (tree, floor)]
    assert losses == [[pytest.approx(30), pytest.approx(10), None], [0, 0, None]]
    path = tmp_path / "index.html"
    page.write_page(path, results, pictures, metrics / "predictions", list(ADE20K), HARDWARE, RECIPES)
    html = path.read_text()
    assert (
        "What training did: int2_qat" in html and "trained beforehand, in 20 minutes: models/trained/int2_qat" in html
    )


def test_a_short_training_is_in_seconds():
    assert [_minutes(seconds) for seconds in (86.3, 119.9, 120, 318)] == [
        "86 seconds",
        "120 seconds",
        "2 minutes",
        "5 minutes",
    ]


def test_plots_name_their_points_and_units(metrics):
    svg = plots.size(measured(collect(metrics, METHODS)))
    for text in ("float32", "int2", "MB", "mean IoU"):
        assert text in svg


def test_the_palette_is_ade20ks():
    colors = palette()
    assert colors.shape == (256, 3)
    assert colors[0].tolist() == [120, 120, 120] and colors[2].tolist() == [6, 230, 230]
    assert colors[149].tolist() == [92, 0, 255] and colors[255].tolist() == [0, 0, 0]
