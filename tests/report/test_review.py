import json
import re
from dataclasses import replace

import pytest
from samples import SPEED, metrics

from segquant.base.errors import ConfigError, SegquantError
from segquant.commands import review as command
from segquant.report import review
from segquant.report.results import from_json


def _results(labels=None, **methods):
    """Results of {method: its mIoU, or the keys that differ from the samples', or the reason why it is unavailable}."""
    content = {}
    for method, keys in methods.items():
        if isinstance(keys, str):
            content[method] = {"unavailable": keys}
        else:
            keys = keys if isinstance(keys, dict) else {"mean_iou": keys}
            content[method] = {**metrics(0.7, 2_000_000), "speed": SPEED, **keys}
    return {method: replace(result, labels=labels) for method, result in from_json(content).items()}


def test_a_drop_of_more_than_is_allowed_is_listed_first():
    before = _results(float32=0.70, int4=0.69, int2=0.60)
    now = _results(float32=0.70, int4=0.686, int2=0.59)
    changes = review.verdicts(before, now, 0.5)
    assert [kind for kind, _ in changes] == ["drop", "change"]
    assert changes[0][1].startswith("int2: mean IoU -1.00 points") and changes[1][1] == "int4: mean IoU -0.40 points"
    assert review.verdicts(before, now, 1.0)[0][0] == "change"  # a drop of exactly max_drop is allowed
    assert review.verdicts(before, before, 0) == []


def test_methods_that_are_new_gone_or_not_comparable_are_listed_and_no_drop():
    before = _results(int8=0.7, int4=0.7, float8="no CUDA", int3=0.7)
    now = _results(int8={"mean_iou": 0.5, "protocol": "fixed-32x32-v1"}, float8=0.7, new=0.1, int3="why")
    changes = dict(review.verdicts(before, now, 0))
    assert set(changes) == {"other", "new", "gone", "drop"}
    words = [sentence for _, sentence in review.verdicts(before, now, 0)]
    assert "int8 cannot be compared: it was fixed-64x64-v1, 2 images, and is fixed-32x32-v1, 2 images." in words
    assert {"int4 is no longer there.", "new is new.", "float8 is measured for the first time."} <= set(words)
    assert changes["drop"] == words[0] == "int3 is no longer measured: why. ❌"


def test_a_method_that_is_still_there_and_lost_its_result_fails_the_review():
    before = _results(float32=0.7, int8=0.7, int4="no CUDA")
    line = ("drop", "int8 has no result any more: run dvc repro. ❌")
    assert review.verdicts(before, _results(float32=0.7), 0.5, ["float32", "int8", "int4"]) == [
        line,
        ("gone", "int4 is no longer there."),
    ]


def test_a_method_that_fails_fails_the_review_whatever_was_before():
    failed = from_json({"int8": {"failed": "RuntimeError: x"}})
    line = ("failed", "int8 failed: RuntimeError: x. ❌")
    assert review.verdicts(_results(int8=0.7), failed, 0.5) == review.verdicts({}, failed, 0.5) == [line]
    assert review.verdicts(_results(int8="no CUDA"), failed, 0.5) == review.verdicts(failed, failed, 0.5) == [line]
    timing = {"int8": replace(_results(int8=0.6)["int8"], speed={"failed": "killed"})}
    assert review.verdicts(timing, failed, 0.5) == [line]
    assert review.verdicts(_results(int8=0.7), timing, 0.5) == [
        ("failed", "int8 failed: killed. ❌"),
        ("drop", "int8: mean IoU -10.00 points ❌"),
    ]
    assert review.verdicts(failed, _results(int8=0.7), 0.5) == [("new", "int8 is measured for the first time.")]
    assert "int8" not in review.table({}, _results(float32=0.7) | failed)


def test_as_many_images_with_other_labels_are_not_compared():
    before = _results({"wall": "100"}, int8=0.7, int4=0.7)
    now = _results({"wall": "99"}, int8=0.5) | _results({"wall": "100"}, int4=0.69)
    assert review.verdicts(before, now, 0) == [
        ("drop", "int4: mean IoU -1.00 points ❌"),
        ("other", "int8 cannot be compared: its images or their labels differ."),
    ]
    assert "-20.00" not in review.table(before, now)


def test_the_table_has_what_changed():
    before = _results(float32={"size_bytes": 10_000_000}, int4=0.69)
    int4 = {"mean_iou": 0.68, "size_bytes": 1_500_000}
    now = _results(float32={"size_bytes": 10_000_000}, int4=int4, new=0.6)
    lines = review.table(before, now).splitlines()
    rows = {
        line.split(" | ")[0].removeprefix("| "): [c.strip() for c in line.strip("| ").split("|")] for line in lines[2:5]
    }
    assert rows["int4"][1:7] == ["68.00", "-1.00", "2.00", "99.00", "1.50", "-0.50"]
    assert rows["float32"][2] == "" and rows["new"][2] == "" and rows["new"][3] == "10.00"
    assert "fixed-64x64-v1, 2 images" in lines[-1]


def test_a_chart_places_every_method_inside():
    int2 = {"mean_iou": 0.5, "size_bytes": 1_500_000}
    results = _results(float32={"size_bytes": 15_000_000}, int2=int2, x="why")
    chart = review._chart("t", results, lambda result: result.size_mb, ("smaller", "larger", "MB"))
    points = {name: (float(x), float(y)) for name, x, y in re.findall(r'"(\w+)": \[([\d.]+), ([\d.]+)\]', chart)}
    assert points == {"float32": (0.9, 0.9), "int2": (0.1, 0.1)}
    assert 'x-axis "smaller (1.50 MB)" --> "larger (15.00)"' in chart
    assert review._chart("t", _results(float32=0.7), lambda result: 1, ("a", "b", "c")) == ""


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


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("accuracy/int8.json", "[4", "metrics/accuracy/int8.json at 'main' is not readable JSON"),
        ("accuracy/int8.json", "[4]", "metrics/accuracy/int8.json at 'main' is not as segquant writes it"),
        (
            "results.csv",
            "name\nint8\n",
            "metrics/results.csv at 'main' is not as segquant writes it (a row has no method)",
        ),
        ("classes/int8.csv", "name\nroad\n", "classes/int8.csv is not as segquant writes it (a row has no pixels)"),
    ],
)
def test_files_of_another_form_at_the_base_are_one_line(name, text, message, monkeypatch):
    files = {"accuracy/int8.json": json.dumps(metrics(0.7, 2_000_000)), name: text}
    monkeypatch.setattr(review, "_output", lambda command: files.get(command[-1].partition(":./metrics/")[2]))
    with pytest.raises(SegquantError, match=f"^{re.escape(message)}"):
        review._committed("main", "metrics", ["int8"])


@pytest.mark.parametrize("name", ["folder", "link", "thesis.txt"])
def test_what_is_no_review_is_never_replaced(name, tmp_path):
    """A folder was, by a file, with all that was in it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/data").write_text("mine")
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(
        ConfigError, match=f"--output .*{name} is (a folder: give a file|no review that could be replaced)"
    ):
        command._check_output(tmp_path / name)
    (tmp_path / "review.md").write_text(f"{review.MARKER}\n\n## old\n")
    command._check_output(tmp_path / "review.md")
    command._check_output(tmp_path / "new.md")
