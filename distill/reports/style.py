"""The look of all figures: colours, markers, resolution; each figure is a PNG and the same as SVG.

Figures are drawn by matplotlib's Agg canvas without pyplot, so that no window, style or figure of the caller changes.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from distill.runs.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "DPI", "GREY", "MARKERS", "empty_figure", "plain", "save_figure"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8B4513")
"""Okabe and Ito's, which colour-blind readers tell apart, with brown for yellow, which is pale on white"""
MARKERS = "osD^vP*X<>ph"
"""what a colour says, a marker says too"""
GREY = "#777777"
"""of what stands beside the subject of a figure"""
DPI = 200
"""dots per inch of every PNG"""


def empty_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: "Axes") -> None:
    """Give axes a light grid, and no frame where there is no axis."""
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, and beside it as SVG, the same on every machine with the same fonts.

    Args:
        figure: as of `empty_figure`.
        path: the PNG.
    """
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "", "svg.fonttype": "none"}):  # text stays text
        write_atomic(path.with_suffix(".svg"), lambda file: figure.savefig(file, format="svg", metadata={"Date": None}))
    write_atomic(path, lambda file: figure.savefig(file, format="png", dpi=DPI))
