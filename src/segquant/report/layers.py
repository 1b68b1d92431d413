"""The sensitivity of layers as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segquant.report import bits as allocated
from segquant.report.figure import plt, svg


def chart(rows: Sequence[dict[str, Any]], allocations: Mapping[str, allocated.Layers] | None = None) -> str:
    """SVG text: each layer's loss in points of mIoU and its logits' signal-to-noise ratio in dB, a colour a bit width;
    beside them what methods of weights `auto` gave it.

    `rows` are as `evaluation.sensitivity.sensitivity` gives them, `allocations` as `bits.read` does.
    """
    names, count = list(dict.fromkeys(row["module"] for row in rows)), len(allocations or ())
    figure, panels = plt.subplots(
        1,
        3 if count else 2,
        figsize=(11, 1.2 + 0.19 * len(names)),
        sharey=True,
        layout="constrained",
        gridspec_kw={"width_ratios": [3, 3, count] if count else [1, 1]},
    )
    for i, bits in enumerate(sorted({row["bits"] for row in rows})):
        chosen = [row for row in rows if row["bits"] == bits]
        heights = [names.index(row["module"]) for row in chosen]
        for axes, key in zip(panels[:2], ("mean_iou_loss", "snr_db"), strict=True):
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
    for axes in panels[:2]:
        axes.grid(alpha=0.3)
    panels[0].legend()
    if allocations:
        allocated.draw(panels[2], names, allocations)
    return svg(figure)
