"""The figure of `compare`: the difference of each column with its 95 % interval, B minus A."""

from collections.abc import Collection, Mapping
from pathlib import Path

from distill.evaluation.intervals import Difference
from distill.reports.style import COLOURS, GREY, empty_figure, plain, save_figure

__all__ = ["draw_differences"]


def draw_differences(
    path: Path, differences: Mapping[str, Difference], *, title: str, doubted: Collection[str] = ()
) -> None:
    """Draw a row for each column: the difference as a marker, its interval as a bar, p beside it; 0 is a line.

    Args:
        path: the PNG; an SVG is written beside it.
        differences: heading of the column -> B minus A, at least one.
        title: names A, B and the data.
        doubted: headings whose marker is hollow, because a check doubts an accuracy.
    """
    figure = empty_figure(6.5, 1.3 + 0.34 * len(differences))
    axes = figure.add_subplot()
    axes.axvline(0, color=GREY, linewidth=1)
    for number, (name, found) in enumerate(differences.items()):
        height = len(differences) - 1 - number
        arms = [[found.value - found.low], [found.high - found.value]]
        look = {"marker": "o", "markersize": 6, "color": COLOURS[0], "capsize": 3, "elinewidth": 1.5}
        face = "white" if name in doubted else COLOURS[0]
        axes.errorbar(found.value, height, xerr=arms, linestyle="", markerfacecolor=face, **look)
        axes.annotate(
            f"p = {found.p_value:.2g}",
            (1.02, height),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize="small",
            color="#333333",
            annotation_clip=False,
        )
    axes.set_yticks(range(len(differences)), [*differences][::-1])
    axes.set_ylim(-0.6, len(differences) - 0.4)
    axes.set_xlabel("accuracy of B minus accuracy of A (percentage points, 95 % interval)")
    axes.set_title(title, fontsize="medium")
    plain(axes)
    save_figure(figure, path)
