from importlib import import_module

import numpy as np
import pytest
from samples import SPEED, metrics, write_metrics, write_predictions

from segquant.base.config import ENGINES
from segquant.base.files import write_json
from segquant.evaluation.bootstrap import compare
from segquant.evaluation.counts import read_counts
from segquant.report import advice, plots, results, tables
from segquant.report.notes import footnotes
from segquant.report.results import collect, from_json, with_intervals


def method(miou, size, times_as_fast, interval=None):
    ratio = {"median": times_as_fast, "min": 0.9 * times_as_fast, "max": 1.1 * times_as_fast}
    return {
        **metrics(miou, size),
        "speed": {**SPEED, "relative_to_float32": ratio},
        **({"loss_interval": interval} if interval else {}),
    }


FLOAT32 = method(0.70, 15e6, 1.0)


def advise(**methods):
    return advice.advise(from_json({"float32": FLOAT32, **methods}))


def sentences(**methods):
    return advice.sentences(from_json({"float32": FLOAT32, **methods}))


def test_the_smallest_and_the_fastest_within_a_point_are_named():
    methods = {
        "bfloat16": method(0.699, 7.5e6, 1.5),
        "int4": method(0.695, 2.4e6, 0.9),
        "int2": method(0.52, 1.2e6, 3.0, [15, 21]),
    }
    chosen = advise(**methods)
    assert (chosen.smallest, chosen.fastest, chosen.lossy) == ("int4", "bfloat16", ["int2"])
    lines = {heading: (name, words) for heading, name, words in sentences(**methods)}
    smallest, words = lines["Smallest"]
    assert smallest == "int4" and "2.40 MB" in words and "loses 0.50 points" in words
    assert lines["Fastest"][0] == "bfloat16" and lines["Fastest"][1].startswith("1.5 times as fast as float32")
    assert lines["Avoid"] == ("int2", "It loses 18.00 points of mIoU (95 % interval: 15.00 to 21.00).")


def test_a_loss_that_may_be_below_a_point_on_other_images_is_unsure():
    unsure = method(0.685, 1.2e6, 1.0, [0.4, 2.4])
    assert advise(int2=unsure).lossy == [] and advise(int2=unsure).smallest is None
    lines = [line[:2] for line in sentences(int2=unsure)]
    assert lines == [("Smallest", "float32"), ("Fastest", "float32"), ("Unsure", "int2")]
    assert sentences() == []


def test_a_gain_has_its_own_interval():
    smallest, fastest = sentences(int8=method(0.7007, 4e6, 0.5, [-0.11, -0.02]))
    assert "gains 0.07 points of mIoU (95 % interval: 0.02 to 0.11); takes 2.0 times as long" in smallest[2]
    assert smallest[2].endswith("(1.82 to 2.22).")  # the range of that ratio, not of its inverse
    assert fastest == ("Fastest", "float32", "No method within 1 point of its mIoU is clearly faster.")
    equal = sentences(int8=method(0.70001, 4e6, 1.0, [-0.01, 0.02]))
    assert "loses nothing in mIoU (95 % interval: -0.01 to 0.02)" in equal[0][2]
    rounded = sentences(int8=method(0.6996, 4e6, 1.0, [-0.001, 0.09]))
    assert "loses 0.04 points of mIoU (95 % interval: 0.00 to 0.09)" in rounded[0][2]  # not -0.00, as in the table


def test_a_method_that_could_not_be_timed_has_its_reason_in_the_notes(tmp_path):
    write_metrics(tmp_path)
    write_json(tmp_path / "speed" / "int2.json", {"unavailable": "no compiler"})
    untimed = collect(tmp_path, ["float32", "int2"])
    assert untimed["int2"].speedup_eager is None and "int2 was not timed: no compiler." in footnotes(untimed)
    assert tables.to_csv(untimed).splitlines()[2].endswith(",")
    assert advice.advise(untimed).fastest is None
    assert "latency" in plots.latency(untimed) and tables.lanes(untimed)
    assert "latency" in plots.latency({"int2": untimed["int2"]})


def test_methods_that_were_not_timed_get_no_words_on_speed():
    untimed = {"int8": metrics(0.70, 3.8e6), "int4": metrics(0.70, 2.4e6)}
    lines = advice.sentences(from_json({"float32": metrics(0.70, 15e6), **untimed}))
    assert [line[:2] for line in lines] == [("Smallest", "int4"), ("Without advantage", "int8")]
    assert lines[1][2] == "int4 is at least about as small and accurate, and clearly better in one of these."
    fast = method(0.70, 3.8e6, 4.0)
    assert advise(int8=untimed["int8"], static=fast).dominated == {}  # int8 may be as fast


def test_too_few_images_give_no_interval(tmp_path, monkeypatch):
    write_metrics(tmp_path)
    write_predictions(tmp_path, {"float32": 0.9, "int2": 0.6}, 2)
    monkeypatch.setattr(results, "FEWEST", 41)
    assert with_intervals(collect(tmp_path, ["float32", "int2"]), tmp_path)["int2"].loss_interval is None


def test_counts_of_other_images_than_float32s_give_no_interval(tmp_path):
    write_metrics(tmp_path)
    write_predictions(tmp_path, {"float32": 0.9}, 2)
    write_predictions(tmp_path, {"int2": 0.9}, 3)  # of a run that was rebuilt in part
    scored = with_intervals(collect(tmp_path, ["float32", "int2"]), tmp_path)
    assert scored["float32"].loss_interval == (0, 0) and scored["int2"].loss_interval is None


def test_a_method_that_is_faster_by_chance_alone_is_not_the_fastest():
    assert advise(int8=method(0.70, 4e6, 1.1)).fastest is None


def test_the_more_accurate_of_two_that_chance_may_swap_is_the_fastest():
    fast = {"a": method(0.699, 3.8e6, 4.6), "b": method(0.6995, 3.8e6, 4.2), "c": method(0.70, 3.8e6, 3.0)}
    assert advise(**fast).fastest == "b"
    slow = {"a": method(0.699, 3.8e6, 1.3), "b": method(0.6995, 3.8e6, 1.1)}
    assert advise(**slow).fastest == "a"  # b is not faster than float32


def test_the_fastest_that_needs_no_other_engine_is_named_too():
    graph = {**method(0.70, 3.8e6, 1.4), "engine": "onnxruntime"}
    eager = {"median": 4.5, "min": 4, "max": 5}
    graph["speed"] = {**graph["speed"], "engine": "onnxruntime", "relative_to_eager": eager}
    lines = {
        heading: (name, words) for heading, name, words in sentences(bfloat16=method(0.70, 7.5e6, 1.5), static=graph)
    }
    assert lines["Smallest and fastest"][0] == "static" and "Fastest" not in lines
    assert (
        "; on ONNX Runtime, 4.5 times as fast as float32 in PyTorch (4.00 to 5.00)." in lines["Smallest and fastest"][1]
    )
    assert lines["Fastest in PyTorch"][0] == "bfloat16" and "Without advantage" not in lines


def test_of_files_about_as_small_a_fast_one_is_the_smallest_and_a_more_accurate_one_as_fast_is_named():
    methods = {
        "int2": method(0.6971, 1.58e6, 0.9),
        "int2_static": method(0.6973, 1.67e6, 4.5),
        "int4_static": method(0.7003, 2.44e6, 4.7),
        "int8_static": method(0.7007, 3.77e6, 4.6),
    }
    chosen = advise(**methods)
    assert (chosen.smallest, chosen.fastest, chosen.accurate) == ("int2_static", "int2_static", "int4_static")
    assert chosen.dominated == {"int2": "int2_static", "int8_static": "int4_static"}
    headings = [line[:2] for line in sentences(**methods)]
    assert headings[:2] == [("Smallest and fastest", "int2_static"), ("As fast, more accurate", "int4_static")]
    methods["int2_static"] = method(0.6973, 1.75e6, 4.5)  # not about as small as int2
    chosen = advise(**methods)
    assert (chosen.smallest, chosen.fastest, chosen.accurate) == ("int2", "int4_static", None)
    methods |= {"int2_static": method(0.6995, 1.67e6, 4.5)}
    assert advise(**methods).accurate is None  # 0.08 points more are no more


def test_a_dominated_method_is_named_with_the_one_that_dominates_it():
    methods = {
        "int8": method(0.70, 3.8e6, 0.8),
        "bfloat16": method(0.70, 7.5e6, 1.5),
        "static": method(0.7, 3.8e6, 4.0),
        "int4": method(0.695, 2.4e6, 0.8),
        "int3": method(0.6945, 2.0e6, 0.8),
    }
    assert advise(**methods).dominated == {"int8": "static", "bfloat16": "static", "int4": "int3"}
    assert ("Without advantage", "int8, bfloat16") in [line[:2] for line in sentences(**methods)]
    chain = {"int4": method(0.695, 2.4e6, 0.8), "qat": method(0.698, 2.4e6, 0.8), "int3": method(0.6975, 2.0e6, 0.8)}
    assert advise(**chain).dominated == {"int4": "int3", "qat": "int3"}  # nothing dominates int3
    better = {
        "int8": method(0.70, 3.8e6, 0.8),
        "static": method(0.69, 3.8e6, 4.0),
        "tiny": method(0.695, 1e6, 0.5),
    }
    assert "int8" not in advise(**better).dominated  # static loses a point, tiny is slow


def test_intervals_are_those_of_compare(tmp_path):
    write_metrics(tmp_path)
    write_predictions(tmp_path, {"float32": 0.9, "int2": 0.6}, 2)
    plain = collect(tmp_path, ["float32", "int2", "float8_dynamic"])
    scored = with_intervals(plain, tmp_path)
    assert plain["int2"].loss_interval is None and scored["float8_dynamic"] == plain["float8_dynamic"]
    first, second = (read_counts(tmp_path / "predictions" / name / "confusion.parquet") for name in ("float32", "int2"))
    scores = compare(first, second)["mean_iou"]
    expected = [-100 * scores["high"], -100 * scores["low"]]
    np.testing.assert_allclose(scored["int2"].loss_interval, expected, rtol=1e-12)
    assert scored["float32"].loss_interval == (0, 0)
    header, _, line = tables.to_csv(scored).splitlines()
    assert float(dict(zip(header.split(","), line.split(",")))["loss_low"]) == pytest.approx(expected[0], abs=0.005)


def test_without_float32_or_counts_there_is_no_advice(tmp_path):
    write_metrics(tmp_path)
    scored = with_intervals(collect(tmp_path, ["int2"]), tmp_path)
    assert scored["int2"].loss_interval is None
    assert advice.advise(scored) is None and advice.sentences(scored) == []


def test_engines_have_the_names_that_their_modules_give_them():
    assert advice.ENGINES == {engine: import_module(f"segquant.engines.{engine}").NAME for engine in ENGINES}
