"""Small figures inside a page: inline SVG in the colours of the page, light and dark, on the screen and on paper.

The pictures of files (`figures`) are matplotlib's. A page has these instead: they follow the reader's colours, and a
run of seconds does not wait a second for them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10

from markupsafe import Markup, escape

__all__ = ["Mark", "interval_bar", "line_chart", "ticks"]

WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 44
"""margins"""
MARKS = ("circle", "square", "triangle", "diamond")
"""shapes of points: lines are told apart without colour"""


@dataclass(frozen=True)
class Mark:
    """A point of a line."""

    x: float
    y: float
    low: float | None = None
    """lower end of its interval"""
    high: float | None = None
    """upper end"""


def interval_bar(mean: float, low: float | None, high: float | None) -> Markup:
    """Return a bar from 0 to 100 % with a mark at the mean and a thick line over its interval.

    >>> "<svg" in interval_bar(50.0, 45.0, 55.0), "interval" in interval_bar(50.0, None, None)
    (True, False)
    """
    whole = '<rect class="track" x="0" y="5" width="100" height="2"/>'
    inside = "" if low is None or high is None else _rect("interval", low, 3, max(0.6, high - low), 6)
    mark = _rect("mean", mean - 0.6, 0, 1.2, 12)
    return Markup(f'<svg class="bar" viewBox="0 0 100 12" aria-hidden="true">{whole}{inside}{mark}</svg>')


def _rect(name: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{name}" x="{x:.2f}" y="{y:g}" width="{width:.2f}" height="{height:g}"/>'


def line_chart(
    lines: Mapping[str, Sequence[Mark]],
    *,
    title: str,
    across: str,
    up: str,
    marked: bool = True,
    x_names: Mapping[float, str] | None = None,
) -> Markup:
    """Return a chart with a line for each series.

    Args:
        lines: name -> its points, at least one point in all, in the order of x.
        title: what the chart shows, for readers that do not see it.
        across: name of the horizontal axis, with its unit.
        up: name of the vertical axis.
        marked: whether points have marks and intervals; without, lines of many points.
        x_names: texts at places of the horizontal axis; None for round numbers.
    """
    points = [mark for line in lines.values() for mark in line]
    room = 0.04 if marked else 0.0  # so that no mark is cut
    x_low, x_high = _limits([mark.x for mark in points], room)
    y_low, y_high = _limits([y for mark in points for y in (mark.y, mark.low, mark.high) if y is not None], room)
    x_ticks = x_names or {x: _short(x) for x in ticks(x_low, x_high)}
    y_ticks = {y: _short(y) for y in ticks(y_low, y_high)}

    def x_at(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_at(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y, text in y_ticks.items():
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y_at(y) + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for x, text in x_ticks.items():
        low = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{x_at(x):.1f}" x2="{x_at(x):.1f}" y1="{low}" y2="{low + 4}"/>')
        parts.append(f'<text class="tick" x="{x_at(x):.1f}" y="{low + 18}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    turned = f'transform="translate(13 {(HEIGHT - BOTTOM + TOP) / 2:.0f}) rotate(-90)"'
    parts.append(f'<text class="name" {turned} text-anchor="middle">{escape(up)}</text>')
    for number, line in enumerate(lines.values()):
        path = " ".join(f"{x_at(mark.x):.1f},{y_at(mark.y):.1f}" for mark in line)
        parts.append(f'<g class="series s{number % 8}"><polyline points="{path}"/>')
        for mark in line if marked else ():
            x = x_at(mark.x)
            if mark.low is not None and mark.high is not None:
                parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y_at(mark.low):.1f}" y2="{y_at(mark.high):.1f}"/>')
            parts.append(_shape(MARKS[number % len(MARKS)], x, y_at(mark.y)))
        parts.append("</g>")
    return Markup("".join(parts) + "</svg>") + _legend(list(lines), marked)


def _legend(names: Sequence[str], marked: bool) -> Markup:
    if len(names) < 2:
        return Markup()
    items = []
    for number, name in enumerate(names):
        shape = _shape(MARKS[number % len(MARKS)], 12, 6) if marked else ""
        line = f'<g class="series s{number % 8}"><line x1="0" x2="24" y1="6" y2="6"/>{shape}</g>'
        items.append(f'<li><svg viewBox="0 0 24 12" aria-hidden="true">{line}</svg>{escape(name)}</li>')
    return Markup(f'<ul class="legend">{"".join(items)}</ul>')


def _shape(kind: str, x: float, y: float) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if kind == "square":
        return f'<rect x="{x - 3.5:.1f}" y="{y - 3.5:.1f}" width="7" height="7"/>'
    if kind == "triangle":
        return f'<polygon points="{x:.1f},{y - 5:.1f} {x - 4.5:.1f},{y + 3.5:.1f} {x + 4.5:.1f},{y + 3.5:.1f}"/>'
    return f'<polygon points="{x:.1f},{y - 5:.1f} {x + 5:.1f},{y:.1f} {x:.1f},{y + 5:.1f} {x - 5:.1f},{y:.1f}"/>'


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return round numbers in [low, high], at most `most`.

    >>> ticks(0, 100), ticks(0.0, 0.5), ticks(3, 3)
    ([0.0, 20.0, 40.0, 60.0, 80.0, 100.0], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [3.0])
    """
    if high <= low:
        return [float(low)]
    power = 10.0 ** floor(log10((high - low) / most))
    step = next(power * size for size in (1, 2, 5, 10, 20) if (high - low) / (power * size) <= most - 1)
    first = round(low / step + 0.4999999)
    return [round(number * step, 12) for number in range(first, first + most) if number * step <= high + 1e-9 * step]


def _limits(values: Sequence[float], room: float) -> tuple[float, float]:
    """Return the ends of an axis: those of the values, and room beyond them relative to their distance."""
    low, high = min(values), max(values)
    beyond = room * (high - low) if high > low else 0.5
    return low - beyond, high + beyond


def _short(number: float) -> str:
    return f"{number:.4g}"
