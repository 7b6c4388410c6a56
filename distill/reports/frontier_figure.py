"""The figure of `frontier`: clean against robust accuracy, a curve for each method, controls as grey markers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.reports.frontier import CurveResult, Frontier
from distill.reports.style import COLOURS, GREY, MARKERS, empty_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_frontier"]


def draw_frontier(frontier: Frontier, path: Path) -> None:
    """Draw a panel for the column of the comparison, and one for AutoAttack where there is one.

    A point has its 95 % intervals as a cross, and is hollow where a check doubts the robust accuracy. A vertical line
    marks the clean accuracy at which methods are compared.

    Args:
        frontier: the results; at least one point.
        path: the PNG.
    """
    attacks = [frontier.attack]
    attacks += [name for name in frontier.attacks if name.startswith("autoattack") and name not in attacks]
    figure = empty_figure(3.2 + 4.6 * len(attacks), 5.2)
    panels = figure.subplots(1, len(attacks), squeeze=False)[0]
    for axes, attack in zip(panels, attacks, strict=True):
        _panel(axes, frontier, attack)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize="small")
    figure.suptitle(frontier.title, fontsize="medium")
    save_figure(figure, path)


def _panel(axes: "Axes", frontier: Frontier, attack: str) -> None:
    methods = [curve for curve in frontier.curves if not curve.control]
    controls = [curve for curve in frontier.curves if curve.control]
    for number, curve in enumerate(methods):
        look = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 7}
        _draw(axes, curve, attack, look | {"linestyle": "-" if number < len(COLOURS) else "--"}, zorder=3)
    for number, curve in enumerate(controls):
        look = {"color": GREY, "marker": MARKERS[-1 - number % len(MARKERS)], "markersize": 6, "linestyle": ":"}
        _draw(axes, curve, attack, look, zorder=2)
    where = frontier.at
    if where is None and frontier.reference.points:
        where = frontier.reference.points[0].accuracy("clean")[0]
    if where is not None:
        label = f"{where:.1f} % clean" + ("" if frontier.at is not None else f" ({frontier.reference.name})")
        axes.axvline(where, color="#333333", linewidth=1, linestyle="--", zorder=1, label=label)
    _fit(axes, frontier, attack)
    axes.set_xlabel("clean accuracy (%)")
    axes.set_ylabel(f"robust accuracy (%), {attack}")
    plain(axes)


def _draw(axes: "Axes", curve: CurveResult, attack: str, look: dict[str, Any], zorder: int) -> None:
    """Draw a curve: its line, and a cross with a marker for each point."""
    points = [point for point in curve.points if point.of(attack)]
    if not points:
        return
    clean = [point.accuracy("clean") for point in points]
    robust = [point.accuracy(attack) for point in points]
    marker = {"marker": look["marker"], "markersize": look["markersize"], "color": look["color"]}
    axes.plot([], [], linestyle=look["linestyle"] if len(points) > 1 else "", label=curve.name, **marker)
    across, up = [mean for mean, _, _ in clean], [mean for mean, _, _ in robust]
    axes.plot(across, up, color=look["color"], linestyle=look["linestyle"], linewidth=1.5, zorder=zorder)
    for point, x, y in zip(points, clean, robust, strict=True):
        bars: dict[str, Any] = {"xerr": _arms(x), "yerr": _arms(y), "elinewidth": 0.7, "alpha": 0.8}
        face = look["color"] if point.verdict(attack) == "ok" else "white"
        axes.errorbar(x[0], y[0], linestyle="", zorder=zorder, markerfacecolor=face, **marker, **bars)


def _fit(axes: "Axes", frontier: Frontier, attack: str) -> None:
    """Set the limits by the points: the interval of two or three sets can be far wider than their differences."""
    points = [point for curve in frontier.curves for point in curve.points if point.of(attack)]
    for name, limit in (("clean", axes.set_xlim), (attack, axes.set_ylim)):
        found = [point.accuracy(name) for point in points]
        low, high = min(mean for mean, _, _ in found), max(mean for mean, _, _ in found)
        room = max(2.0, 0.4 * (high - low))
        ends = min(low for _, low, _ in found), max(high for _, _, high in found)
        limit(max(ends[0], low - room) - 0.5, min(ends[1], high + room) + 0.5)


def _arms(accuracy: tuple[float, float, float]) -> list[list[float]]:
    """Return the lengths of the two arms of an interval, as matplotlib takes them."""
    mean, low, high = accuracy
    return [[max(0.0, mean - low)], [max(0.0, high - mean)]]
