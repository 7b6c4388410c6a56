"""The figure of a table: accuracy against the attack's radius; without several radii, a line of points a method."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distill.errors import InputError
from distill.evaluation.rows import LineKey, Row
from distill.reports.figures import draw_lines
from distill.reports.style import COLOURS, GREY, MARKERS, empty_figure, plain, save_figure
from distill.reports.summary import Summary, headings, summary
from robust import Threat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_table"]

TOLD = ("ipc", "backbone", "loss", "labels", "recipe")
"""fields of a line that its name may have beside the method"""
FEWEST_RADII = 3
"""of an attack in one norm, from which it is drawn as a curve"""
Curves = dict[tuple[str, str], dict[LineKey, list[tuple[float, Summary]]]]
"""(attack, norm) -> line of the table -> its points (radius, accuracy)"""


def draw_table(path: Path, rows: Sequence[Row]) -> None:
    """Draw the means over students and seeds with one standard deviation either way, as PNG and SVG.

    Args:
        path: the PNG.
        rows: of finished runs, on one data set.

    Raises:
        InputError: rows of several data sets, which one axis cannot compare.
    """
    means = summary(rows, by_seed=False)
    names = _names(list(dict.fromkeys(mean.line for mean in means)))
    data = list(dict.fromkeys(mean.line.dataset for mean in means))
    if len(data) > 1:
        raise InputError(f"--plot draws one data set; these runs are of {', '.join(data)}: name their folders apart")
    curves = _curves(means)
    if curves:
        figure = empty_figure(max(6.0, 4.6 * len(curves)), 4.4)
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for axes, ((attack, norm), lines) in zip(panels, curves.items(), strict=True):
            draw_lines(
                axes,
                {names[line]: [(eps, mean.mean, mean.std) for eps, mean in points] for line, points in lines.items()},
            )
            axes.set_title(attack, fontsize="medium")
            axes.set_xlabel(f"radius ε of {norm}, pixels in [0, 1]")
        handles, labels = figure.axes[0].get_legend_handles_labels()
    else:
        figure = empty_figure(5 + 0.07 * max(map(len, names.values())), 1.2 + 0.32 * len(names))
        axes = figure.add_subplot()
        _draw_points(axes, means, names)
        handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.suptitle(data[0], fontsize="medium")
    save_figure(figure, path)


def _names(lines: Sequence[LineKey]) -> dict[LineKey, str]:
    """Return names that tell the lines apart: the method, with what differs between lines of the method."""
    found: dict[LineKey, str] = {}
    for line in lines:
        same = [other for other in lines if other.method == line.method]
        fields = [name for name in TOLD if len({getattr(other, name) for other in same}) > 1]
        found[line] = " ".join([line.method, *(_written(line, name) for name in fields)])
    count = Counter(found.values())
    return {line: f"{name} {line.config}" if count[name] > 1 else name for line, name in found.items()}


def _written(line: LineKey, name: str) -> str:
    return f"ipc {line.ipc}" if name == "ipc" else str(getattr(line, name)).removeprefix("teacher ")


def _curves(means: Sequence[Summary]) -> Curves:
    """Return the attacks with several radii; the accuracy without an attack is their point at radius 0."""
    found: Curves = {}
    clean = {mean.line: mean for mean in means if mean.column.attack == "clean"}
    for mean in means:
        threat = mean.column.threat
        if isinstance(threat, Threat):
            attack = mean.column.attack.partition("@")[0]
            points = found.setdefault((attack, threat.norm), {}).setdefault(mean.line, [])
            points.append((threat.eps, mean))
    several = {
        key: lines
        for key, lines in found.items()
        if max(len({eps for eps, _ in points if eps > 0}) for points in lines.values()) >= FEWEST_RADII
    }
    for lines in several.values():
        for line, points in lines.items():
            if line in clean and all(eps > 0 for eps, _ in points):
                points.append((0.0, clean[line]))
            points.sort(key=lambda point: point[0])
    return several


def _draw_points(axes: "Axes", means: Sequence[Summary], names: dict[LineKey, str]) -> None:
    """Draw a row for each line of the table, a marker for each column."""
    place = {line: len(names) - 1 - number for number, line in enumerate(names)}
    columns = headings(mean.column for mean in means)
    for number, (column, heading) in enumerate(columns.items()):
        mine = [mean for mean in means if mean.column == column]
        colour = GREY if column.attack == "clean" else COLOURS[(number - 1) % len(COLOURS)]
        look = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markersize": 6}
        across, up = [mean.mean for mean in mine], [place[mean.line] for mean in mine]
        bars = [mean.std or 0.0 for mean in mine]
        axes.errorbar(across, up, xerr=bars, linestyle="", label=heading, elinewidth=0.8, **look)
    axes.set_yticks(list(place.values()), [names[line] for line in place])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel("accuracy (%)")
    axes.set_xlim(left=0)
    plain(axes)
