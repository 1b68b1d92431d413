"""What a change does to the benchmark, as Markdown for a pull request: metrics, parameters, the table and two plots."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from segquant.base.errors import ConfigError, SegquantError
from segquant.report.tables import BASELINE, collect, loss, measured, relative_latency, speedup

MARKER = "<!-- segquant review -->"  # by which the comment is found that is to be updated
_LONGEST = 20_000  # characters of either diff: GitHub takes 65,536 in a comment


def review(base: str, metrics: str | Path, methods: list[str], max_drop: float) -> tuple[str, bool]:
    """Compare the results in `metrics` with those committed at `base`, a Git revision.

    Gives the Markdown, and whether no method lost more than `max_drop` points of mIoU. Results by another protocol or
    on images with other labels are told and not compared. Raises ConfigError when there is no such revision.
    """
    if _output(["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]) is None:
        raise ConfigError(f"'{base}' is no revision of this repository: fetch it, or name another with --base")
    if Path(metrics).is_absolute():
        raise ConfigError(f"--metrics {metrics}: give the folder as it is named in the repository")
    now = collect(metrics, methods)
    if not measured(now):
        raise ConfigError(f"{metrics} holds no results: run `dvc repro` first")
    for name, one in measured(now).items():
        one["labels"] = _labels((Path(metrics) / "classes" / f"{name}.csv").read_text())
    before = _committed(base, metrics, methods)
    found = verdicts(before, now, max_drop)
    good = not any(kind == "drop" for kind, _ in found)
    compared = any(comparable(before.get(name, {}), one) for name, one in measured(now).items())
    heading = f"{'No' if good else 'A'} method lost more than {max_drop:g} points of mean IoU against `{base}`"
    told = [
        MARKER,
        f"## {heading}" if compared or not good else f"## Nothing could be compared with `{base}`",
        "\n".join(f"- {words}" for _, words in found) or f"- No method's accuracy differs from `{base}`'s.",
        table(before, now),
        _chart("Accuracy against size", now, lambda one: one["size_bytes"] / 1e6, ("smaller", "larger", "MB")),
        _chart("Accuracy against latency", now, relative_latency, ("faster", "slower", "of float32's time")),
        _folded("Parameters", _dvc("params", "diff", base, "--md")),
        _folded("Metrics", _dvc("metrics", "diff", base, "--md")),
    ]
    return "\n\n".join(part for part in told if part) + "\n", good


def verdicts(before: dict[str, Any], now: dict[str, Any], max_drop: float) -> list[tuple[str, str]]:
    """(kind, sentence) for each method whose mIoU changed, came or went.

    Kind "drop" is more than `max_drop` lost, or all: a method that cannot be measured any more.
    """
    found = []
    for method in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(method), now.get(method)
        if new is None:
            found.append(("gone", f"{method} is no longer there."))
        elif old is None:
            found.append(("new", f"{method} is new."))
        elif "unavailable" in new:
            if "unavailable" not in old:
                found.append(("drop", f"{method} is no longer measured: {new['unavailable']}. ❌"))
        elif "unavailable" in old:
            found.append(("new", f"{method} is measured for the first time."))
        elif not comparable(old, new):
            was, is_ = (f"{one['protocol']}, {one['n_images']} images" for one in (old, new))
            why = f"it was {was}, and is {is_}" if was != is_ else "its images or their labels are others"
            found.append(("other", f"{method} cannot be compared: {why}."))
        elif change := round(100 * (new["mean_iou"] - old["mean_iou"]), 2):
            kind = "drop" if -change > max_drop else "change"
            found.append((kind, f"{method}: mean IoU {change:+.2f} points{' ❌' if kind == 'drop' else ''}"))
    return sorted(found, key=lambda one: one[0] != "drop")


def comparable(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether both were scored by one protocol on as many images with the same labels."""
    return "mean_iou" in old and all(old.get(key) == new.get(key) for key in ("protocol", "n_images", "labels"))


def _labels(classes: str | None) -> dict[str, str]:
    """{class: its labelled pixels} of a classes CSV: what tells one set of labelled images from another."""
    rows = csv.DictReader((classes or "").splitlines())
    return {row["name"]: row["pixels"] for row in rows if row["pixels"] != "0"}


def table(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The methods' figures as a Markdown table, with what changed in mIoU and size."""
    lines = ["| method | mIoU % | change | loss | agree % | MB | change | x eager |", "|---|" + "---:|" * 7]
    for method, one in measured(now).items():
        old = before.get(method, {})
        change = (
            [100 * (one["mean_iou"] - old["mean_iou"]), (one["size_bytes"] - old["size_bytes"]) / 1e6]
            if (comparable(old, one))
            else [None, None]
        )
        points, ratio = loss(now, method), speedup(one)
        lost = "" if points is None else f"{round(points, 2) + 0.0:.2f}"
        cells = (
            method,
            f"{100 * one['mean_iou']:.2f}",
            _signed(change[0]),
            lost,
            f"{100 * one['agreement']:.2f}",
            f"{one['size_bytes'] / 1e6:.2f}",
            _signed(change[1]),
            f"{ratio['median']:.2f}" if ratio else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    one = measured(now).get(BASELINE) or next(iter(measured(now).values()))
    return "\n".join(lines) + (
        f"\n\n{one['protocol']}, {one['n_images']} images; loss in points of mIoU against float32; x eager: times as "
        "fast as PyTorch's eager float32, on the machine that ran this."
    )


def _signed(change: float | None) -> str:
    return "" if change is None or not round(change, 2) else f"{change:+.2f}"


def _chart(title: str, results: dict[str, Any], cost: Any, words: tuple[str, str, str]) -> str:
    """Mean IoU over the logarithm of a cost as a chart that GitHub draws itself (Mermaid)."""
    points = {name: (cost(one), 100 * one["mean_iou"]) for name, one in measured(results).items()}
    points = {name: point for name, point in points.items() if point[0]}
    if len(points) < 2:
        return ""
    xs, ys = ([point[axis] for point in points.values()] for axis in (0, 1))

    def place(value: float, values: list[float]) -> float:
        low, high = min(values), max(values)
        return 0.5 if high == low else 0.1 + 0.8 * (value - low) / (high - low)

    less, more, unit = words
    logs = [math.log(x) for x in xs]
    lines = [
        "```mermaid",
        "quadrantChart",
        f"    title {title}",
        f'    x-axis "{less} ({min(xs):.2f} {unit})" --> "{more} ({max(xs):.2f})"',
        f'    y-axis "less accurate ({min(ys):.2f} %)" --> "more ({max(ys):.2f} %)"',
    ]
    for name, (x, y) in points.items():
        lines.append(f'    "{name}": [{place(math.log(x), logs):.3f}, {place(y, ys):.3f}]')
    return "\n".join([*lines, "```"])


def _committed(base: str, metrics: str | Path, methods: list[str]) -> dict[str, Any]:
    """{method: metrics JSON and `labels`} as committed at `base`, of `methods` and of those measured there."""

    def text(name: str) -> str | None:
        return _output(["git", "show", f"{base}:./{metrics}/{name}"])

    listed = csv.DictReader((text("results.csv") or "").splitlines())
    texts = {name: text(f"{name}.json") for name in dict.fromkeys([*methods, *(row["method"] for row in listed)])}
    found = {name: json.loads(one) for name, one in texts.items() if one}
    for name, one in measured(found).items():
        one["labels"] = _labels(text(f"classes/{name}.csv"))
    return found


def _dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise SegquantError(f"dvc {' '.join(arguments)} failed: {said[-1]}")
    return done.stdout.strip()


def _folded(title: str, text: str) -> str:
    if len(text) > _LONGEST:
        text = text[: text.rindex("\n", 0, _LONGEST)] + "\n\n(and more: run the command)"
    return (
        f"<details><summary>{title} that differ</summary>\n\n{text}\n\n</details>" if text else f"{title}: none differ."
    )


def _output(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None
