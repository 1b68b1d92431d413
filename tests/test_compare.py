"""`segquant compare` as a user runs it."""

import json

import numpy as np
from forked import segquant
from test_cli import imported

from segquant.evaluation.counts import write_counts


def _write(folder, name, share):
    images = [
        (f"{i:02d}", np.array([[0, 0, int(100 * share) + i], [0, 1, 200 - int(100 * share)], [1, 1, 60]]))
        for i in range(20)
    ]
    write_counts(folder / "predictions" / name / "confusion.parquet", images, ["wall", "floor"], "fixed-64x64-v1")


def test_two_methods_are_compared(tmp_path):
    _write(tmp_path, "float32", 0.9)
    _write(tmp_path, "int2", 0.6)
    done = segquant("compare", "float32", "int2", "--metrics", tmp_path)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("mIoU"))
    assert line.split()[-1] == "lower"
    assert "fixed-64x64-v1, 20 images; intervals from 10,000 draws" in done.stdout
    again = segquant("compare", "float32", "int2", "--metrics", tmp_path, "--json")
    comparison = json.loads(again.stdout)
    assert comparison["mean_iou"]["high"] < 0 and f"{100 * comparison['mean_iou']['difference']:+.2f}" in line
    same = segquant("compare", "int2", tmp_path / "predictions" / "int2" / "confusion.parquet", "--metrics", tmp_path)
    assert same.stdout.count("no clear difference") == 3


def test_methods_are_compared_without_torch_and_pandas(tmp_path):
    _write(tmp_path, "float32", 0.9)
    _write(tmp_path, "int2", 0.6)
    code = "from segquant.cli import cli; cli()"
    printed, modules = imported(code, "compare", "float32", "int2", "--metrics", str(tmp_path))
    assert "mIoU" in printed and "pyarrow.parquet" in modules and modules.isdisjoint({"torch", "pandas"})


def test_a_method_without_results_is_one_line(tmp_path):
    _write(tmp_path, "float32", 0.9)
    done = segquant("compare", "float32", "int3", "--metrics", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} has no counts by image of 'int3': choose from float32\n"
