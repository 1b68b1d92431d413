import csv
import io
import re

import numpy as np
import pytest
from PIL import Image

from segquant.config import Qat, Recipe
from segquant.data.classes import ADE20K
from segquant.data.palette import palette
from segquant.data.sources import open_source, rows
from segquant.files import write_json
from segquant.report import page, plots, tables, training

SPEED = {
    "latency_ms": {"p50": 210.0, "p90": 230.0, "n": 10}, "images_per_second": 4.7, "load_seconds": 0.1,
    "relative_to_float32": {"median": 1.05, "min": 0.9, "max": 1.2}, "peak_memory_bytes": 300e6, "engine": "eager",
    "batch_size": 1, "input_size": [512, 512], "device": "cpu", "threads": 2, "engine_version": "2.13.0",
}  # fmt: skip
LANE = {
    "engine": "eager",
    "batch_size": 1,
    **{k: SPEED[k] for k in ("latency_ms", "images_per_second", "relative_to_float32")},
}
SPEED["lanes"] = [
    LANE, {**LANE, "batch_size": 4, "images_per_second": 5.25}, {**LANE, "engine": "compile", "compile_seconds": 31.4},
    {"engine": "compile", "batch_size": 4, "unavailable": "torch.compile failed: no compiler"},
]  # fmt: skip
HARDWARE = {"processor": "Testium 9", "instructions": ["avx2"], "cores": 2, "gpu": None}


def _metrics(miou, size):
    return {
        "algorithm": "hqq", "mean_iou": miou, "mean_accuracy": 0.8, "overall_accuracy": 0.9, "agreement": 0.99, "n_images": 2,
        "protocol": "fixed-64x64-v1", "size_bytes": size, "compression": 1e7 / size, "quantized_fraction": 0.65,
        "bits_per_parameter": 8.0,
    }  # fmt: skip


@pytest.fixture
def metrics(tmp_path):
    content = {
        "float32": _metrics(0.70, 10_000_000),
        "int2": _metrics(0.55, 2_000_000),
        "float8_dynamic": {"unavailable": "no CUDA"},
    }
    for name, value in content.items():
        write_json(tmp_path / f"{name}.json", value)
        if "unavailable" not in value:
            write_json(tmp_path / "speed" / f"{name}.json", SPEED)
    write_json(tmp_path / "quantize" / "int2.json", {"seconds": 12.34, "calibration_images": 32})
    return tmp_path


RECIPES = {
    "float32": Recipe("float32"), "int8": Recipe("int8"), "float8_dynamic": Recipe("float8", activations="float8"),
    "int2": Recipe("int2", 32, "gptq"), "int2_qat": Recipe("int2", 32, "gptq", train=Qat(steps=10)),
}  # fmt: skip
METHODS = ["float32", "int8", "float8_dynamic", "int2"]


def test_the_table_tells_loss_in_points_and_what_was_not_measured(metrics, capsys):
    results = tables.collect(metrics, METHODS)
    assert list(results) == ["float32", "float8_dynamic", "int2"]
    assert tables.loss(results, "int2") == pytest.approx(15.0)
    tables.show(results, HARDWARE)
    text = capsys.readouterr().out
    line = next(x for x in text.splitlines() if x.startswith("int2"))
    assert line.split()[1:5] == ["hqq", "pytorch", "55.00", "15.00"]
    assert "12.3" in line.split()
    assert "fixed-64x64-v1, 2 images" in text
    assert "Testium 9 (avx2), 2 cores" in text
    assert "float8_dynamic is unavailable: no CUDA." in text


@pytest.mark.parametrize("width", [80, 120, 220])
def test_no_figure_is_cut_on_a_terminal(metrics, width, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    tables.show(tables.collect(metrics, METHODS))
    text = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    line = next(x for x in text.splitlines() if x.startswith("int2"))
    assert "…" not in text and "..." not in text
    assert line.split()[:4] == (
        ["int2", "hqq", "pytorch", "55.00"] if width == 220 else ["int2", "55.00", "15.00", "99.00"]
    )
    assert width == 220 or len(line) <= width


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
    tables.show(results, HARDWARE)
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


def test_the_page_is_self_contained_and_shows_every_method(metrics, tmp_path):
    source = open_source("scenes", "validation", 2)
    for row in rows(source):
        for method in ("float32", "int2"):
            image = Image.fromarray(np.full((row["height"], row["width"]), 4, np.uint8))
            (metrics / "predictions" / method).mkdir(parents=True, exist_ok=True)
            image.save(metrics / "predictions" / method / f"{row['id']}.png")
    path = tmp_path / "report" / "index.html"
    results = tables.collect(metrics, METHODS)
    arguments = metrics / "predictions", list(ADE20K), HARDWARE, RECIPES
    page.write_page(path, results, rows(source), *arguments)
    html = path.read_text()
    assert "http://" not in html.replace("http://www.w3.org", "")  # the names of XML namespaces
    assert "https://" not in html and "<script" not in html
    for text in ("float32", "int2", "55.00", "no CUDA", "Testium 9", "fixed-64x64-v1"):
        assert text in html
    assert html.count("data:image/png") == 2 * 3 and html.count("data:image/jpeg") == 2  # truth and two methods
    assert html.count("<svg") == 2
    before = path.read_bytes()
    page.write_page(path, results, rows(source), *arguments)
    assert path.read_bytes() == before


CLASSES_CSV = "id,name,pixels,iou,accuracy\n4,tree,300,{},0.5\n3,floor,100,0.25,\n"


def test_what_training_did_is_told_by_class_and_shown_over_the_photograph(metrics, tmp_path):
    source = open_source("scenes", "validation", 1)
    write_json(metrics / "int2_qat.json", {**_metrics(0.68, 2_000_000), "algorithm": "qat"})
    write_json(metrics / "quantize" / "int2_qat.json", {"seconds": 1200.0, "taken_from": "models/trained/int2_qat"})
    for method, iou in (("float32", 0.9), ("int2", 0.6), ("int2_qat", 0.8), ("int8", 0.89)):
        folder = metrics / "predictions" / method
        folder.mkdir(parents=True)
        (folder / "classes.csv").write_text(CLASSES_CSV.format(iou))
        for row in rows(source):
            image = Image.fromarray(np.full((row["height"], row["width"]), 4, np.uint8))
            image.save(folder / f"{row['id']}.png")
    results = tables.collect(metrics, [*METHODS, "int2_qat"])
    compared = training.trained(RECIPES, tables.measured(results))
    assert compared == {"int2_qat": ["float32", "int2", "int2_qat"]}
    headings, table = training.class_table(metrics / "predictions", compared["int2_qat"])
    assert headings[:5] == ["class", "pixels %", "IoU float32", "IoU int2", "IoU int2_qat"]
    assert table == [
        ["tree", "75.00", "90.0", "60.0", "80.0", "50.0", "50.0", "50.0"],
        ["floor", "25.00", "25.0", "25.0", "25.0", "", "", ""],
    ]
    path = tmp_path / "index.html"
    page.write_page(path, results, rows(source), metrics / "predictions", list(ADE20K), HARDWARE, RECIPES)
    html = path.read_text()
    assert (
        "What training did: int2_qat" in html and "trained beforehand, in 20 minutes: models/trained/int2_qat" in html
    )
    assert html.count("data:image/jpeg") == 1 + 5  # photo; photo, truth and three methods over it


def test_plots_name_their_points_and_units(metrics):
    svg = plots.size(tables.measured(tables.collect(metrics, METHODS)))
    for text in ("float32", "int2", "MB", "mean IoU"):
        assert text in svg


def test_the_palette_is_ade20ks():
    colors = palette()
    assert colors.shape == (256, 3)
    assert colors[0].tolist() == [120, 120, 120] and colors[2].tolist() == [6, 230, 230]
    assert colors[149].tolist() == [92, 0, 255] and colors[255].tolist() == [0, 0, 0]
