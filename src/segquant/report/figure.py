"""How figures look: SVG text in the colours of the page around them."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("svg")
INK, ACCENT = "#012345", "#543210"  # placeholders for the colours of the surrounding text and of highlights
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "segquant",
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.facecolor": "none",
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
)
import matplotlib.pyplot as plt  # noqa: E402, F401


def svg(figure: plt.Figure) -> str:
    """The figure as SVG text for a page; closes the figure."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    plt.close(figure)
    inner = text.getvalue()[text.getvalue().index("<svg") :]
    return inner.replace(INK, "currentColor").replace(ACCENT, "var(--accent, #0b62d6)")


def standalone(text: str) -> str:
    """SVG text of `svg` as a file of its own, black on white."""
    return text.replace("<svg", '<svg style="color: #000; background: #fff"', 1)
