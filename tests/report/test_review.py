import re

import pytest
from samples import SPEED, metrics

from segquant.report import review


def _measured(miou, size=2_000_000, **more):
    return {**metrics(miou, size), "speed": SPEED, **more}


def test_a_drop_of_more_than_is_allowed_is_told_first_and_no_other_is():
    before = {"float32": _measured(0.70), "int4": _measured(0.69), "int2": _measured(0.60)}
    now = {"float32": _measured(0.70), "int4": _measured(0.686), "int2": _measured(0.59)}
    found = review.verdicts(before, now, 0.5)
    assert [kind for kind, _ in found] == ["drop", "change"]
    assert found[0][1].startswith("int2: mean IoU -1.00 points") and found[1][1] == "int4: mean IoU -0.40 points"
    assert review.verdicts(before, now, 1.0)[0][0] == "change"  # a drop of just so much is allowed
    assert review.verdicts(before, before, 0) == []


def test_what_came_went_or_cannot_be_compared_is_told_and_no_drop():
    before = {
        "int8": _measured(0.7),
        "int4": _measured(0.7),
        "float8": {"unavailable": "no CUDA"},
        "int3": _measured(0.7),
    }
    now = {
        "int8": _measured(0.5, protocol="fixed-32x32-v1"),
        "float8": _measured(0.7),
        "new": _measured(0.1),
        "int3": {"unavailable": "why"},
    }
    found = dict(review.verdicts(before, now, 0))
    assert set(found) == {"other", "new", "gone", "drop"}
    words = [told for _, told in review.verdicts(before, now, 0)]
    assert "int8 cannot be compared: it was fixed-64x64-v1, 2 images, and is fixed-32x32-v1, 2 images." in words
    assert {"int4 is no longer there.", "new is new.", "float8 is measured for the first time."} <= set(words)
    assert found["drop"] == words[0] == "int3 is no longer measured: why. ❌"


def test_as_many_images_with_other_labels_are_not_compared():
    before = {"int8": _measured(0.7, labels={"wall": "100"}), "int4": _measured(0.7, labels={"wall": "100"})}
    now = {"int8": _measured(0.5, labels={"wall": "99"}), "int4": _measured(0.69, labels={"wall": "100"})}
    assert review.verdicts(before, now, 0) == [
        ("drop", "int4: mean IoU -1.00 points ❌"),
        ("other", "int8 cannot be compared: its images or their labels are others."),
    ]
    assert "-20.00" not in review.table(before, now)


def test_the_table_has_what_changed():
    before = {"float32": _measured(0.70, 10_000_000), "int4": _measured(0.69)}
    now = {"float32": _measured(0.70, 10_000_000), "int4": _measured(0.68, 1_500_000), "new": _measured(0.6)}
    lines = review.table(before, now).splitlines()
    rows = {
        line.split(" | ")[0].removeprefix("| "): [c.strip() for c in line.strip("| ").split("|")] for line in lines[2:5]
    }
    assert rows["int4"][1:7] == ["68.00", "-1.00", "2.00", "99.00", "1.50", "-0.50"]
    assert rows["float32"][2] == "" and rows["new"][2] == "" and rows["new"][3] == "10.00"
    assert "fixed-64x64-v1, 2 images" in lines[-1]


def test_a_chart_places_every_method_inside():
    results = {"float32": _measured(0.70, 15_000_000), "int2": _measured(0.5, 1_500_000), "x": {"unavailable": "why"}}
    chart = review._chart("t", results, lambda one: one["size_bytes"] / 1e6, ("smaller", "larger", "MB"))
    points = {name: (float(x), float(y)) for name, x, y in re.findall(r'"(\w+)": \[([\d.]+), ([\d.]+)\]', chart)}
    assert points == {"float32": (0.9, 0.9), "int2": (0.1, 0.1)}
    assert 'x-axis "smaller (1.50 MB)" --> "larger (15.00)"' in chart
    assert review._chart("t", {"float32": _measured(0.7)}, lambda one: 1, ("a", "b", "c")) == ""


def test_a_long_diff_is_cut_at_a_line():
    text = review._folded("Metrics", "\n".join(f"| row {i} |" for i in range(9000)))
    assert len(text) < 21_000 and "(and more: run the command)" in text and text.endswith("</details>")
    assert review._folded("Metrics", "") == "Metrics: none differ."


@pytest.mark.parametrize("uses", [["actions/checkout", "actions/setup-python"]])
def test_the_workflow_runs_what_make_review_runs_and_no_third_partys_action(uses):
    import yaml
    from conftest import ROOT

    flow = yaml.safe_load((ROOT / ".github/workflows/benchmark.yml").read_text())
    (job,) = flow["jobs"].values()
    assert [step["uses"].split("@")[0] for step in job["steps"] if "uses" in step] == uses
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    assert "make review BASE=" in commands and review.MARKER in commands and "GITHUB_STEP_SUMMARY" in commands
    assert flow["permissions"] == {"contents": "read", "pull-requests": "write"}
