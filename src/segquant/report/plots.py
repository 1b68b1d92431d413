"""Accuracy against size and latency, as SVG text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adjustText import adjust_text

from segquant.report.figure import ACCENT, INK, plt, svg
from segquant.report.tables import BASELINE, speedup, timed


@dataclass(frozen=True)
class Point:
    """A method's cost and its mIoU in percent, each with its lowest and highest value."""

    name: str
    x: float
    miou: float
    miou_range: tuple[float, float]
    x_range: tuple[float, float] | None = None


def tradeoff(points: Sequence[Point], x_label: str, log: bool = False) -> str:
    """mIoU in percent over a cost, one named point a method with the intervals of both, and their Pareto front."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    front = pareto([(one.x, one.miou) for one in points])
    best = sorted((points[i] for i in front), key=lambda one: one.x)
    axes.plot(
        [one.x for one in best], [one.miou for one in best], "--", drawstyle="steps-post", color=INK, lw=1, alpha=0.6
    )
    for i, one in enumerate(points):
        color = ACCENT if i in front else INK
        axes.errorbar(
            one.x,
            one.miou,
            xerr=_whiskers(one.x, one.x_range),
            yerr=_whiskers(one.miou, one.miou_range),
            fmt="o",
            ms=6,
            color=color,
            elinewidth=0.8,
            alpha=1 if i in front else 0.55,
            zorder=3,
            gid=f"point-{one.name}",
        )
    if log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set(xlabel=x_label, ylabel="mean IoU, %")
    axes.margins(0.12)
    axes.grid(alpha=0.2, color=INK)
    names = [axes.text(one.x, one.miou, one.name, fontsize=9) for one in points]
    adjust_text(
        names,
        ax=axes,
        expand=(1.15, 1.5),
        iter_lim=300,
        arrowprops={"arrowstyle": "-", "lw": 0.5, "color": INK},
    )
    return svg(figure)


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """Which of (cost, value) no other one equals or betters in both."""
    return {i for i, (x, y) in enumerate(points) if not any(a <= x and b >= y and (a < x or b > y) for a, b in points)}


def size(results: dict[str, dict[str, Any]]) -> str:
    """Accuracy against the size of the file."""
    points = [Point(name, one["size_bytes"] / 1e6, *_miou(results, name)) for name, one in results.items()]
    return tradeoff(points, "size of the weights' file, MB (log)", log=True)


def latency(results: dict[str, dict[str, Any]]) -> str:
    """Accuracy against latency, told in eager float32's, which each method was timed beside."""
    points = []
    for name, one in results.items():
        if ratio := speedup(one):
            spread = 1 / ratio["max"], 1 / ratio["min"]
            points.append(Point(name, 1 / ratio["median"], *_miou(results, name), spread))
    base = timed(results.get(BASELINE, {}))
    told = f" ({base['latency_ms']['p50']:.0f} ms)" if base else ""
    return tradeoff(points, f"latency, in that of float32 in PyTorch{told}")


def _miou(results: dict[str, dict[str, Any]], name: str) -> tuple[float, tuple[float, float]]:
    """mIoU in percent, and where the interval of its loss puts it."""
    miou = 100 * results[name]["mean_iou"]
    low, high = results[name].get("loss_interval", [0, 0])
    base = 100 * results[BASELINE]["mean_iou"] if BASELINE in results else miou
    return miou, (base - high, base - low) if low or high else (miou, miou)


def _whiskers(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    return None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
