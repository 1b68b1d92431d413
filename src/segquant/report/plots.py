"""Accuracy against size and latency, and the sensitivity of layers, as SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "segquant", "svg.fonttype": "none", "font.family": "sans-serif"})
import matplotlib.pyplot as plt  # noqa: E402


def scatter(results: dict[str, dict[str, Any]], x_label: str, x_of) -> str:
    """mIoU in percent over `x_of(result)`, one named point a method; None leaves a method out."""
    figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
    points = [(x_of(r), 100 * r["mean_iou"], name) for name, r in results.items() if x_of(r) is not None]
    for i, (x, y, name) in enumerate(sorted(points)):
        axes.scatter(x, y, s=46, zorder=3, color=f"C{i % 10}")
        axes.annotate(name, (x, y), xytext=(6, 6 if i % 2 else -12), textcoords="offset points", fontsize=9)
    axes.set(xlabel=x_label, ylabel="mean IoU, %")
    axes.margins(0.16)
    axes.grid(alpha=0.3)
    return _svg(figure)


def sensitivity(rows: Sequence[dict[str, Any]]) -> str:
    """Each layer's loss in points of mIoU and its logits' signal-to-noise in dB, a colour for each width."""
    names = list(dict.fromkeys(row["module"] for row in rows))
    figure, panels = plt.subplots(1, 2, figsize=(11, 1.2 + 0.19 * len(names)), sharey=True, layout="constrained")
    for i, bits in enumerate(sorted({row["bits"] for row in rows})):
        chosen = [row for row in rows if row["bits"] == bits]
        heights = [names.index(row["module"]) for row in chosen]
        for axes, key in zip(panels, ("mean_iou_loss", "snr_db"), strict=True):
            axes.scatter(
                [math.nan if row[key] is None else row[key] for row in chosen],
                heights,
                s=22,
                color=f"C{i}",
                label=f"{bits} bits",
            )
    panels[0].set(xlabel="loss alone, points of mean IoU", yticks=range(len(names)))
    panels[0].set_yticklabels(names, fontsize=7)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    panels[1].set(xlabel="signal-to-noise of the logits, dB")
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[0].legend()
    return _svg(figure)


def _svg(figure: plt.Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    plt.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def size(results: dict[str, dict[str, Any]]) -> str:
    return scatter(results, "model.safetensors, MB", lambda r: r["size_bytes"] / 1e6)


def latency(results: dict[str, dict[str, Any]]) -> str:
    return scatter(results, "latency, ms (median)", lambda r: r["speed"]["latency_ms"]["p50"] if "speed" in r else None)
