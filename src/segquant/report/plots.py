"""Accuracy against size and latency, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adjustText import adjust_text

from segquant.report.figure import ACCENT, INK, plt, svg
from segquant.report.results import BASELINE, Result


@dataclass(frozen=True)
class Point:
    """A method's cost and its mIoU in percent, each with its lowest and highest value."""

    name: str
    x: float
    miou: float
    miou_range: tuple[float, float]
    x_range: tuple[float, float] | None = None


def tradeoff(points: Sequence[Point], x_label: str, log: bool = False) -> str:
    """mIoU in percent over a cost: a named point a method, with the intervals of both, and their Pareto front."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    front = pareto([(point.x, point.miou) for point in points])
    steps = sorted((points[i] for i in front), key=lambda point: point.x)
    xs, ys = [point.x for point in steps], [point.miou for point in steps]
    axes.plot(xs, ys, "--", drawstyle="steps-post", color=INK, lw=1, alpha=0.6)
    for i, point in enumerate(points):
        axes.errorbar(
            point.x,
            point.miou,
            xerr=_whiskers(point.x, point.x_range),
            yerr=_whiskers(point.miou, point.miou_range),
            fmt="o",
            ms=6,
            color=ACCENT if i in front else INK,
            elinewidth=0.8,
            alpha=1 if i in front else 0.55,
            zorder=3,
            gid=f"point-{point.name}",
        )
    if log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set(xlabel=x_label, ylabel="mean IoU, %")
    axes.margins(0.12)
    axes.grid(alpha=0.2, color=INK)
    names = [axes.text(point.x, point.miou, point.name, fontsize=9) for point in points]
    line = {"arrowstyle": "-", "lw": 0.5, "color": INK}
    adjust_text(names, ax=axes, expand=(1.15, 1.5), iter_lim=300, arrowprops=line)
    return svg(figure)


def pareto(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the (cost, value) pairs that no other pair dominates: at most the cost, at least the value, and not
    both equal."""
    return {i for i, (x, y) in enumerate(points) if not any(a <= x and b >= y and (a < x or b > y) for a, b in points)}


def size(results: Mapping[str, Result]) -> str:
    """Accuracy against the size of the file, for measured results."""
    points = [Point(method, result.size_mb, *_miou(result)) for method, result in results.items()]
    return tradeoff(points, "size of the weights' file, MB (log)", log=True)


def latency(results: Mapping[str, Result]) -> str:
    """Accuracy against latency as a multiple of eager float32's, for measured results."""
    points = []
    for method, result in results.items():
        if ratio := result.speedup_eager:
            spread = 1 / ratio["max"], 1 / ratio["min"]
            points.append(Point(method, result.relative_latency, *_miou(result), spread))
    base = results[BASELINE].timing if BASELINE in results else None
    milliseconds = f" ({base['latency_ms']['p50']:.0f} ms)" if base else ""
    return tradeoff(points, f"latency, as a multiple of float32 in PyTorch{milliseconds}")


def _miou(result: Result) -> tuple[float, tuple[float, float]]:
    """mIoU in percent, and where the interval of its loss puts it."""
    miou = 100 * result.mean_iou
    low, high = result.loss_interval or (0, 0)
    base = miou if result.float32_iou is None else 100 * result.float32_iou
    return miou, (base - high, base - low) if low or high else (miou, miou)


def _whiskers(value: float, ends: tuple[float, float] | None) -> list[list[float]] | None:
    return None if ends is None else [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
