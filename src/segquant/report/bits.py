"""What weights `auto` gave each layer, and why, as a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segquant.base.files import read_json
from segquant.report.figure import INK, plt, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Layers = Mapping[str, Mapping[str, Any]]  # name of a layer -> its bits, group_size, divergence and smallest


def read(artifacts: str | Path, methods: Iterable[str]) -> dict[str, Layers]:
    """{method: what each layer got} of the methods whose artifacts in a folder say so."""
    infos = {method: read_json(Path(artifacts) / method / "quantization.json") for method in methods}
    return {method: info["allocation"]["layers"] for method, info in infos.items() if "allocation" in info}


def chart(allocations: Mapping[str, Layers]) -> str:
    """SVG text: the divergence that each layer's smallest candidate would cause alone, and the bits it got instead."""
    smallest = {name: layer["smallest"] for layers in allocations.values() for name, layer in layers.items()}
    names = list(smallest)
    figure, (costs, given) = plt.subplots(
        1,
        2,
        figsize=(11, 1.4 + 0.19 * len(names)),
        sharey=True,
        layout="constrained",
        gridspec_kw={"width_ratios": [3, len(allocations)]},
    )
    rows = range(len(names))
    for i, (method, allocation) in enumerate(allocations.items()):
        known = [(row, allocation[name]) for row, name in enumerate(names) if name in allocation]
        costs.scatter(
            [layer["divergence"] for _, layer in known], [row for row, _ in known], s=18, color=f"C{i}", label=method
        )
    draw(given, names, allocations)
    at_least = list(smallest.values())
    costs.scatter(at_least, rows, s=22, facecolor="none", edgecolor=INK, label="with its smallest candidate")
    costs.set(xscale="log", xlabel="divergence that the layer causes alone, nats a pixel", yticks=rows)
    costs.set_yticklabels(names, fontsize=7)
    costs.set_ylim(len(names) - 0.4, -0.6)
    costs.grid(alpha=0.3)
    costs.legend(fontsize=8)
    return svg(figure)


def draw(axes: Axes, names: Sequence[str], allocations: Mapping[str, Layers]) -> None:
    """Write the bits and group size of each method's layers, a column a method, with a row for each of `names`."""
    for i, allocation in enumerate(allocations.values()):
        known = [(row, allocation[name]) for row, name in enumerate(names) if name in allocation]
        for row, layer in known:
            axes.text(i, row, f"{layer['bits']} / {layer['group_size']}", ha="center", va="center", fontsize=7)
        widths = [layer["bits"] / 8 * 0.9 for _, layer in known]
        axes.barh([row for row, _ in known], widths, left=i - 0.45, height=0.86, color=f"C{i}", alpha=0.3)
    axes.set(xticks=range(len(allocations)), xticklabels=list(allocations), xlim=(-0.5, len(allocations) - 0.5))
    axes.set_xlabel("bits / group size")
