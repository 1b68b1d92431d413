"""What a change does to the benchmark, as Markdown for a pull request: metrics, parameters, the table and two plots."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from segquant.base.errors import ConfigError, SegquantError, one_line
from segquant.base.files import parse_json
from segquant.base.text import in_markdown
from segquant.report.checked import checked, checked_rows
from segquant.report.columns import COLUMN, Column
from segquant.report.notes import protocol
from segquant.report.results import ACCURACY, CLASSES, Result, collect, from_json, labelled, measured
from segquant.report.tables import markdown

MARKER = "<!-- segquant review -->"  # the workflow finds the comment to update by it
_LONGEST = 20_000  # characters of either diff: GitHub takes 65,536 in a comment


def review(base: str, metrics: str | Path, methods: list[str], max_drop: float) -> tuple[str, bool]:
    """Compare the results in `metrics` with those committed at `base`, a Git revision.

    Gives the Markdown, and whether no method failed or lost more than `max_drop` points of mIoU. Results by another
    protocol or on images with other labels are listed but not compared. Raises ConfigError where there is no such
    revision.
    """
    if _output(["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"]) is None:
        raise ConfigError(f"'{base}' is no revision of this repository: fetch it, or name another with --base")
    if Path(metrics).is_absolute():
        raise ConfigError(f"--metrics {metrics}: give the folder as it is named in the repository")
    now = collect(metrics, methods)
    if not measured(now):
        raise ConfigError(f"{metrics} holds no results: run `dvc repro` first")
    now = _with_labels(now, lambda name: (Path(metrics) / name).read_text(errors="replace"))
    before = _committed(base, metrics, methods)
    changes = verdicts(before, now, max_drop, methods)
    kinds = {kind for kind, _ in changes}
    good = kinds.isdisjoint(("drop", "failed"))
    compared = any(comparable(before.get(method), result) for method, result in measured(now).items())
    revision = in_markdown(base) if "`" in base else f"`{base}`"
    if "failed" in kinds and "drop" not in kinds:
        heading = "A method failed"
    else:
        heading = f"{'No' if good else 'A'} method lost more than {max_drop:g} points of mean IoU against {revision}"
    parts = [
        MARKER,
        f"## {heading}" if compared or not good else f"## Nothing could be compared with {revision}",
        "\n".join(f"- {in_markdown(words)}" for _, words in changes)
        or f"- No method's accuracy differs from {revision}'s.",
        table(before, now),
        _chart("Accuracy against size", now, lambda result: result.size_mb, ("smaller", "larger", "MB")),
        _chart(
            "Accuracy against latency",
            now,
            lambda result: result.relative_latency,
            ("faster", "slower", "of float32's time"),
        ),
        _folded("Parameters", _difference("params", base, {"old": base, "new": "workspace"})),
        _folded("Metrics", _difference("metrics", base, {"old": base, "new": "workspace", "diff": "Change"})),
    ]
    return "\n\n".join(part for part in parts if part) + "\n", good


def verdicts(
    before: Mapping[str, Result], now: Mapping[str, Result], max_drop: float, methods: Collection[str] = ()
) -> list[tuple[str, str]]:
    """(kind, sentence) for each method whose mIoU changed, or that is new or gone.

    Kind "drop": the method lost more than `max_drop` points, cannot be measured any more, or is one of `methods` and
    has lost its result; "failed": it or its timing failed, whether or not it did before.
    """
    changes = []
    for method in [*now, *(name for name in before if name not in now)]:
        old, new = before.get(method), now.get(method)
        if new is None:
            lost = method in methods and before[method].missing is None
            words = f"{method} has no result any more: run dvc repro. ❌" if lost else f"{method} is no longer there."
            changes.append(("drop" if lost else "gone", words))
            continue
        if new.failed:
            changes.append(("failed", f"{method} failed: {new.failed}. ❌"))
        if new.missing is not None and (new.failed or (old is not None and old.missing is not None)):
            continue
        if old is None:
            changes.append(("new", f"{method} is new."))
        elif new.missing is not None:
            changes.append(("drop", f"{method} is no longer measured: {new.accuracy['unavailable']}. ❌"))
        elif old.missing is not None:
            changes.append(("new", f"{method} is measured for the first time."))
        elif not comparable(old, new):
            was, is_ = (protocol({method: result}) for result in (old, new))
            why = f"it was {was}, and is {is_}" if was != is_ else "its images or their labels differ"
            changes.append(("other", f"{method} cannot be compared: {why}."))
        elif change := round(100 * (new.mean_iou - old.mean_iou), 2):
            kind = "drop" if -change > max_drop else "change"
            changes.append((kind, f"{method}: mean IoU {change:+.2f} points{' ❌' if kind == 'drop' else ''}"))
    return sorted(changes, key=lambda change: change[0] not in ("drop", "failed"))


def comparable(old: Result | None, new: Result) -> bool:
    """Whether both were scored by one protocol on as many images with the same labels."""
    if old is None or old.missing is not None or old.labels != new.labels:
        return False
    return all(old.accuracy.get(key) == new.accuracy.get(key) for key in ("protocol", "n_images"))


def table(before: Mapping[str, Result], now: Mapping[str, Result]) -> str:
    """The methods' figures as a Markdown table, with the changes of mIoU and size."""

    def change(key: str) -> Column:
        def get(result: Result) -> str:
            old = before.get(result.method)
            points = COLUMN[key].get(result) - COLUMN[key].get(old) if comparable(old, result) else 0
            return f"{points:+.2f}" if round(points, 2) else ""

        return Column(f"{key}_change", "change", f"Change of {COLUMN[key].heading} since the base", get)

    miou, loss, agreement, size, eager = (
        COLUMN[key] for key in ("mean_iou", "loss_points", "agreement", "size_mb", "speedup_eager")
    )
    columns = [COLUMN["method"], miou, change("mean_iou"), loss, agreement, size, change("size_mb"), eager]
    return markdown(measured(now).values(), columns) + (
        f"\n\n{in_markdown(protocol(now))}; loss in points of mIoU against float32; x eager: times as fast as "
        "PyTorch's eager float32, on the machine that ran this."
    )


def _chart(
    title: str, results: Mapping[str, Result], cost: Callable[[Result], float | None], words: tuple[str, str, str]
) -> str:
    """Mean IoU over the logarithm of a cost as a chart that GitHub draws itself (Mermaid)."""
    points = {method: (cost(result), 100 * result.mean_iou) for method, result in measured(results).items()}
    points = {method: point for method, point in points.items() if point[0]}
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
    for method, (x, y) in points.items():
        lines.append(f'    "{method}": [{place(math.log(x), logs):.3f}, {place(y, ys):.3f}]')
    return "\n".join([*lines, "```"])


def _committed(base: str, metrics: str | Path, methods: list[str]) -> dict[str, Result]:
    """The results as committed at `base`, of `methods` and of those measured there."""

    def text(name: str) -> str:
        return _output(["git", "show", f"{base}:./{metrics}/{name}"]) or ""

    listed = [
        row["method"] for row in checked_rows(text("results.csv"), ["method"], f"{metrics}/results.csv at '{base}'")
    ]
    content = {}
    for method in dict.fromkeys([*methods, *listed]):
        name = ACCURACY.format(method)
        if words := text(name):
            where = f"{metrics}/{name} at '{base}'"
            try:
                content[method] = checked("accuracy", parse_json(words), where)
            except ValueError as error:
                raise SegquantError(f"{where} is not readable JSON: {one_line(error)}") from error
    return _with_labels(from_json(content), text)


def _with_labels(results: Mapping[str, Result], read: Callable[[str], str]) -> dict[str, Result]:
    """The results with the labels that each measured one was scored on, from its classes CSV; `read` takes its path
    below the metrics folder."""

    def labels(method: str) -> dict[str, str]:
        name = CLASSES.format(method)
        return labelled(read(name), name)

    return dict(results) | {method: replace(r, labels=labels(method)) for method, r in measured(results).items()}


def _difference(kind: str, base: str, columns: Mapping[str, str]) -> str:
    """What `dvc KIND diff` finds, as a Markdown table with `columns`, {key of DVC's JSON: heading}; empty where nothing
    differs. (DVC's own Markdown holds names and values as they are.)"""
    files = json.loads(_dvc(kind, "diff", base, "--json") or "{}")
    lines = [["Path", kind.removesuffix("s").capitalize(), *map(in_markdown, columns.values())]]
    lines.append(["---"] * len(lines[0]))
    for path, changes in sorted(files.items()):
        for key, change in sorted(changes.items()):
            values = (change.get(column) for column in columns)
            values = (round(value, 5) if isinstance(value, float) else value for value in values)
            lines.append([*map(in_markdown, (path, key)), *("-" if v is None else in_markdown(v) for v in values)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if files else ""


def _dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        message = done.stderr.strip().splitlines() or ["it printed no message"]
        raise SegquantError(f"dvc {' '.join(arguments)} failed: {message[-1]}")
    return done.stdout.strip()


def _folded(title: str, text: str) -> str:
    if len(text) > _LONGEST:
        text = text[: text.rindex("\n", 0, _LONGEST)] + "\n\n(and more: run the command)"
    return (
        f"<details><summary>{title} that differ</summary>\n\n{text}\n\n</details>" if text else f"{title}: none differ."
    )


def _output(command: list[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout if done.returncode == 0 else None
