import csv
import io
import re

import pytest
from samples import HARDWARE, METHODS, RECIPES, write_metrics, write_predictions
from samples import metrics as made

from segquant.base.classes import ADE20K
from segquant.base.files import write_json
from segquant.data.palette import palette
from segquant.report import classes, page, plots, tables, terminal, training


@pytest.fixture
def metrics(tmp_path):
    return write_metrics(tmp_path)


def test_the_table_tells_loss_in_points_and_what_was_not_measured(metrics, capsys):
    results = tables.collect(metrics, METHODS)
    assert list(results) == ["float32", "float8_dynamic", "int2"]
    assert tables.loss(results, "int2") == pytest.approx(15.0)
    terminal.show(results, HARDWARE)
    text = capsys.readouterr().out
    line = next(x for x in text.splitlines() if x.startswith("int2"))
    assert line.split()[1:5] == ["hqq", "pytorch", "55.00", "15.00"]
    assert "12.3" in line.split()
    assert "fixed-64x64-v1, 2 images" in text
    assert "Testium 9 (avx2), 2 cores" in text
    assert "float8_dynamic is unavailable: no CUDA." in text


def test_brackets_are_text(metrics, capsys):
    results = tables.collect(metrics, METHODS)
    results["onnx"] = {"unavailable": "not installed: pip install 'segquant[onnx]'"}
    terminal.show(results)
    one = {"first": 0.5, "second": 0.5, "difference": 0.0, "low": 0.0, "high": 0.0}
    found = {**dict.fromkeys(terminal.ACCURACY, one), "n_images": 20, "protocol": "p", "resamples": 9}
    terminal.show_comparison("a[/b].parquet", "[red]", found)
    text = capsys.readouterr().out
    assert "pip install 'segquant[onnx]'." in text and "a[/b].parquet" in text and "[red]" in text


@pytest.mark.parametrize("width", [80, 120, 220])
def test_no_figure_is_cut_on_a_terminal(metrics, width, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    results = tables.collect(metrics, METHODS)
    results["int8_static_qat"] = {**results["int2"], "mean_iou": 0.70004}
    terminal.show(results)
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "…" not in text and "..." not in text
    lines = text.splitlines()
    for method, cells in (("int2", ["55.00", "15.00"]), ("int8_static_qat", ["70.00", "0.00"])):
        line = next(x for x in lines if x.startswith(method))
        assert line.split()[0] == method and set(cells) < set(line.split()) and (width == 80) == ("hqq" not in line)
        assert len(line) <= width
    shown = len(re.split(r"\s{1,}(?=\S)", lines[0]))
    assert shown > {80: 8, 120: 12, 220: 20}[width] and "x eager" in lines[0] and "MB" in lines[0]
    left_out = re.search(r"(\d+) more columns on a wider terminal", text)
    assert bool(left_out) == (width < 220)


def test_every_engine_and_batch_size_that_was_measured_is_shown(metrics, capsys):
    results = tables.collect(metrics, METHODS)
    rows = tables.speed_rows(results)
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


def test_what_was_skipped_or_cast_is_said(metrics):
    results = tables.collect(metrics, METHODS)
    results["float32"] |= {"dtype": "bfloat16", "compile": True, "skipped": ["a", "b"]}
    notes = tables.footnotes(results)
    assert "Evaluated with autocast to bfloat16, compiled." in notes and "float32 skipped 2 images." in notes


def test_times_taken_on_the_cpu_are_not_told_of_the_gpu_beside_it(metrics):
    with_gpu = {**HARDWARE, "gpu": "NVIDIA H200, 580.1"}
    results = tables.collect(metrics, METHODS)
    assert "on Testium 9 (avx2), 2 cores" in " ".join(tables.footnotes(results, with_gpu))
    results["float32"]["speed"]["device"] = "NVIDIA H200"
    assert "on NVIDIA H200;" in " ".join(tables.footnotes(results, with_gpu))


def test_the_csv_is_readable_and_has_one_line_a_measured_method(metrics):
    lines = list(csv.DictReader(io.StringIO(tables.to_csv(tables.collect(metrics, METHODS)))))
    assert [x["method"] for x in lines] == ["float32", "int2"]
    assert float(lines[1]["mean_iou"]) == 55.0
    assert float(lines[1]["size_mb"]) == 2.0
    assert float(lines[1]["speedup"]) == 1.05


def test_without_float32_there_is_no_loss_and_no_crash(metrics):
    results = tables.collect(metrics, ["int2"])
    assert tables.loss(results, "int2") is None
    assert tables.cells(results, "int2")[:4] == ["hqq", "pytorch", "55.00", ""]


def test_what_training_did_is_told_by_class(metrics, tmp_path):
    write_json(metrics / "int2_qat.json", {**made(0.68, 2_000_000), "algorithm": "qat"})
    write_json(metrics / "quantize" / "int2_qat.json", {"seconds": 1200.0, "taken_from": "models/trained/int2_qat"})
    pictures = write_predictions(metrics, {"float32": 0.9, "int2": 0.6, "int2_qat": 0.8, "int8": 0.89}, 1)
    results = tables.collect(metrics, [*METHODS, "int2_qat"])
    compared = training.trained(RECIPES, tables.measured(results))
    assert compared == {"int2_qat": ["float32", "int2", "int2_qat"]}
    found = classes.read_classes(metrics / "predictions", compared["int2_qat"])
    headings, table = training.class_table(found, compared["int2_qat"])
    assert headings[:5] == ["class", "pixels %", "IoU float32", "IoU int2", "IoU int2_qat"]
    assert table == [
        ["tree", "75.00", "90.0", "60.0", "80.0", "50.0", "50.0", "50.0"],
        ["floor", "25.00", "25.0", "25.0", "25.0", "", "", ""],
    ]
    assert classes.losses(found, ["int2", "int2_qat", "int4"]) == [
        {"name": "tree", "share": 75.0, "iou": 90.0, "loss": [pytest.approx(30), pytest.approx(10), None]},
        {"name": "floor", "share": 25.0, "iou": 25.0, "loss": [0, 0, None]},
    ]
    path = tmp_path / "index.html"
    page.write_page(path, results, pictures, metrics / "predictions", list(ADE20K), HARDWARE, RECIPES)
    html = path.read_text()
    assert (
        "What training did: int2_qat" in html and "trained beforehand, in 20 minutes: models/trained/int2_qat" in html
    )


def test_plots_name_their_points_and_units(metrics):
    svg = plots.size(tables.measured(tables.collect(metrics, METHODS)))
    for text in ("float32", "int2", "MB", "mean IoU"):
        assert text in svg


def test_the_palette_is_ade20ks():
    colors = palette()
    assert colors.shape == (256, 3)
    assert colors[0].tolist() == [120, 120, 120] and colors[2].tolist() == [6, 230, 230]
    assert colors[149].tolist() == [92, 0, 255] and colors[255].tolist() == [0, 0, 0]
