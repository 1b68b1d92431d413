import numpy as np
import pytest
from samples import SPEED, metrics, write_metrics, write_predictions

from segquant.base.files import write_json
from segquant.evaluation.bootstrap import compare
from segquant.evaluation.counts import read_counts
from segquant.report import advice, plots, tables


def result(miou, size, times_as_fast, interval=None):
    ratio = {"median": times_as_fast, "min": 0.9 * times_as_fast, "max": 1.1 * times_as_fast}
    return {
        **metrics(miou, size),
        "speed": {**SPEED, "relative_to_float32": ratio},
        **({"loss_interval": interval} if interval else {}),
    }


FLOAT32 = {"float32": result(0.70, 15e6, 1.0)}


def test_the_smallest_and_the_fastest_within_a_point_are_named():
    results = FLOAT32 | {
        "bfloat16": result(0.699, 7.5e6, 1.5),
        "int4": result(0.695, 2.4e6, 0.9),
        "int2": result(0.52, 1.2e6, 3.0, [15, 21]),
    }
    found = advice.advise(results)
    assert (found["smallest"], found["fastest"], found["lossy"]) == ("int4", "bfloat16", ["int2"])
    told = {heading: (method, words) for heading, method, words in advice.sentences(results)}
    assert (
        told["Smallest"][0] == "int4"
        and "2.40 MB" in told["Smallest"][1]
        and "loses 0.50 points" in told["Smallest"][1]
    )
    assert told["Fastest"][0] == "bfloat16" and told["Fastest"][1].startswith("1.5 times as fast as float32")
    assert told["Avoid"] == ("int2", "It loses 18.00 points of mIoU (95 % interval: 15.00 to 21.00).")


def test_a_loss_that_may_be_below_a_point_on_other_images_is_not_called_one_to_avoid():
    unsure = FLOAT32 | {"int2": result(0.685, 1.2e6, 1.0, [0.4, 2.4])}
    assert advice.advise(unsure)["lossy"] == [] and advice.advise(unsure)["smallest"] is None
    told = [one[:2] for one in advice.sentences(unsure)]
    assert told == [("Smallest", "float32"), ("Fastest", "float32"), ("Unsure", "int2")]
    assert advice.sentences(FLOAT32) == []


def test_a_gain_is_told_with_its_own_interval():
    told = advice.sentences(FLOAT32 | {"int8": result(0.7007, 4e6, 0.5, [-0.11, -0.02])})
    assert "gains 0.07 points of mIoU (95 % interval: 0.02 to 0.11); takes 2.0 times as long" in told[0][2]
    assert told[0][2].endswith("(1.82 to 2.22).")  # the range of that, not of its inverse
    assert told[1] == ("Fastest", "float32", "No method within a point of it is clearly faster.")
    same = advice.sentences(FLOAT32 | {"int8": result(0.70001, 4e6, 1.0, [-0.01, 0.02])})
    assert "loses nothing in mIoU (95 % interval: -0.01 to 0.02)" in same[0][2]


def test_a_method_that_could_not_be_timed_is_told_and_breaks_nothing(tmp_path):
    write_metrics(tmp_path)
    write_json(tmp_path / "speed" / "int2.json", {"unavailable": "no compiler"})
    results = tables.collect(tmp_path, ["float32", "int2"])
    assert tables.speedup(results["int2"]) is None and "int2 was not timed: no compiler." in tables.footnotes(results)
    assert tables.to_csv(results).splitlines()[2].endswith(",")
    assert advice.advise(results)["fastest"] is None
    assert "latency" in plots.latency(results) and tables.speed_rows(results)


def test_of_what_was_not_timed_no_speed_is_told():
    untimed = {"int8": metrics(0.70, 3.8e6), "int4": metrics(0.70, 2.4e6)}
    told = advice.sentences({"float32": metrics(0.70, 15e6), **untimed})
    assert [one[:2] for one in told] == [("Smallest", "int4"), ("Without advantage", "int8")]
    assert told[1][2] == "int4 is at least about as small and accurate, and clearly better in one of these."
    fast = result(0.70, 3.8e6, 4.0)
    found = advice.advise(FLOAT32 | {"int8": untimed["int8"], "static": fast})
    assert found["pointless"] == {}  # whether int8 is as fast is not known


def test_fewer_images_than_an_interval_wants_get_none(tmp_path, monkeypatch):
    write_metrics(tmp_path)
    write_predictions(tmp_path, {"float32": 0.9, "int2": 0.6}, 2)
    monkeypatch.setattr(advice, "FEWEST", 41)
    results = tables.collect(tmp_path, ["float32", "int2"])
    advice.add_intervals(results, tmp_path)
    assert "loss_interval" not in results["int2"]


def test_counts_of_other_images_than_float32s_give_no_interval(tmp_path):
    write_metrics(tmp_path)
    write_predictions(tmp_path, {"float32": 0.9}, 2)
    write_predictions(tmp_path, {"int2": 0.9}, 3)  # of a run that was half rebuilt
    results = tables.collect(tmp_path, ["float32", "int2"])
    advice.add_intervals(results, tmp_path)
    assert "loss_interval" in results["float32"] and "loss_interval" not in results["int2"]


def test_what_is_faster_by_chance_alone_is_not_called_fastest():
    assert advice.advise(FLOAT32 | {"int8": result(0.70, 4e6, 1.1)})["fastest"] is None


def test_of_two_that_chance_may_swap_the_more_accurate_is_the_fastest():
    results = FLOAT32 | {"a": result(0.699, 3.8e6, 4.6), "b": result(0.6995, 3.8e6, 4.2), "c": result(0.70, 3.8e6, 3.0)}
    assert advice.advise(results)["fastest"] == "b"
    slow = FLOAT32 | {"a": result(0.699, 3.8e6, 1.3), "b": result(0.6995, 3.8e6, 1.1)}
    assert advice.advise(slow)["fastest"] == "a"  # b is not faster than float32


def test_the_fastest_that_needs_no_other_engine_is_named_too():
    graph = {**result(0.70, 3.8e6, 1.4), "engine": "onnxruntime"}
    graph["speed"] = {
        **graph["speed"],
        "engine": "onnxruntime",
        "relative_to_eager": {"median": 4.5, "min": 4, "max": 5},
    }
    results = FLOAT32 | {"bfloat16": result(0.70, 7.5e6, 1.5), "static": graph}
    told = {heading: (method, words) for heading, method, words in advice.sentences(results)}
    assert told["Fastest"][0] == "static"
    assert told["Fastest"][1].startswith("On ONNX Runtime, 4.5 times as fast as float32 in PyTorch (4.00 to 5.00)")
    assert told["Fastest in PyTorch"][0] == "bfloat16" and "Without advantage" not in told


def test_a_method_that_another_betters_in_everything_is_named_with_that_one():
    results = FLOAT32 | {
        "int8": result(0.70, 3.8e6, 0.8),
        "bfloat16": result(0.70, 7.5e6, 1.5),
        "static": result(0.7, 3.8e6, 4.0),
        "int4": result(0.695, 2.4e6, 0.8),
        "int3": result(0.6945, 2.0e6, 0.8),
    }
    found = advice.advise(results)
    assert found["pointless"] == {"int8": "static", "bfloat16": "static", "int4": "int3"}
    assert ("Without advantage", "int8, bfloat16") in [told[:2] for told in advice.sentences(results)]
    chain = {"int4": result(0.695, 2.4e6, 0.8), "qat": result(0.698, 2.4e6, 0.8), "int3": result(0.6975, 2.0e6, 0.8)}
    assert advice.advise(FLOAT32 | chain)["pointless"] == {"int4": "int3", "qat": "int3"}  # which none betters
    better = FLOAT32 | {
        "int8": result(0.70, 3.8e6, 0.8),
        "static": result(0.69, 3.8e6, 4.0),
        "tiny": result(0.695, 1e6, 0.5),
    }
    assert "int8" not in advice.advise(better)["pointless"]  # static loses a point, tiny is slow


def test_a_graph_is_told_against_pytorchs_eager_float32():
    eager = {"median": 4.0, "min": 3.0, "max": 5.0}
    graph = {**SPEED, "engine": "onnxruntime", "relative_to_eager": eager}
    assert tables.speedup({"speed": graph}) == eager
    del graph["relative_to_eager"]
    assert tables.speedup({"speed": graph}) is None and tables.speedup({}) is None


def test_intervals_are_those_of_compare(tmp_path):
    write_metrics(tmp_path)
    write_predictions(tmp_path, {"float32": 0.9, "int2": 0.6}, 2)
    results = tables.collect(tmp_path, ["float32", "int2", "float8_dynamic"])
    advice.add_intervals(results, tmp_path)
    first, second = (read_counts(tmp_path / "predictions" / name / "confusion.parquet") for name in ("float32", "int2"))
    one = compare(first, second)["mean_iou"]
    np.testing.assert_allclose(results["int2"]["loss_interval"], [-100 * one["high"], -100 * one["low"]], rtol=1e-12)
    assert results["float32"]["loss_interval"] == [0, 0]
    header, _, line = tables.to_csv(results).splitlines()
    cell = dict(zip(header.split(","), line.split(",")))
    assert float(cell["loss_low"]) == pytest.approx(-100 * one["high"], abs=0.005)


def test_without_float32_or_counts_nothing_is_claimed(tmp_path):
    write_metrics(tmp_path)
    results = tables.collect(tmp_path, ["int2"])
    advice.add_intervals(results, tmp_path)
    assert "loss_interval" not in results["int2"]
    assert advice.advise(results) == {} and advice.sentences(results) == []
