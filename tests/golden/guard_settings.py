"""What the settings of GUARD's loss do: `python -m tests.golden.guard_settings PLACE...`.

PLACE is a stored frontier.csv, or a folder of runs of `frontier --out PLACE/out-NAME`; their points become
docs/results/guard-cifar10-16px.csv, with the median time of an iteration where the folder has the runs. A point of a
later place replaces the same point of an earlier one. The table of docs/methods/guard.md and its figure are made of
this file alone.
"""

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import median

from distill.reports.style import COLOURS, MARKERS, empty_figure, plain, save_figure
from distill.reports.tables import written_csv
from distill.runs.scalars import METRICS
from tests.golden.stored import DOCS, RESULTS, experiment_of, flag_of, markdown, read, seconds_of

__all__ = ["draw_settings", "lines_of", "settings_table"]

STORED = RESULTS / "guard-cifar10-16px.csv"
FIGURE = DOCS / "pictures" / "guard-settings-cifar10-16px.png"
KEPT = ("attack", "clean", "clean_low", "clean_high", "robust", "low", "high", "sets", "students", "images", "verdict")
ATTACK = "apgd_t:steps=20@2/255"
METHODS = ("dc", "guard_dc", "at_dc")
SETTINGS = {
    "": "`dc`, cross-entropy",
    "guard:weight=1,h=3": "λ 1, h 3",
    "guard:weight=3,h=3": "λ 3, h 3",
    "guard:weight=10,h=3": "λ 10, h 3",
    "guard:weight=30,h=3": "λ 30, h 3",
    "guard:weight=90,h=1": "λ 90, h 1",
    "guard:weight=0.9,h=10": "λ 0.9, h 10",
    "guard:weight=10,h=3,direction=sign": "λ 10, h 3, z of the gradient's signs",
    "guard:weight=3,h=3,penalty=norm": "λ 3, h 3, norm not squared",
    "guard:weight=1,h=3,penalty=loss_difference": "λ 1, h 3, difference of losses",
    "pgd_at:steps=5@2/255": "`at_dc`, PGD of 5 steps, 2/255",
    "pgd_at:steps=5@8/255": "`at_dc`, PGD of 5 steps, 8/255",
}
"""loss of the real images -> how the table names it, in its order"""
CURVES = {
    "GUARD, h 3": ("", *(f"guard:weight={weight},h=3" for weight in (1, 3, 10, 30))),
    "GUARD, other h, equal λ h²": ("guard:weight=90,h=1", "guard:weight=10,h=3", "guard:weight=0.9,h=10"),
    "z of the gradient's signs, λ 10": ("guard:weight=10,h=3,direction=sign",),
    "norm not squared, λ 3": ("guard:weight=3,h=3,penalty=norm",),
    "difference of losses, λ 1": ("guard:weight=1,h=3,penalty=loss_difference",),
    "attacked images (at_dc)": ("", "pgd_at:steps=5@2/255", "pgd_at:steps=5@8/255"),
}
"""line of the figure -> its losses"""
NAMED = {
    "guard:weight=1,h=3": ("λ 1", (6, 5)),
    "guard:weight=3,h=3": ("λ 3", (-8, -15)),
    "guard:weight=10,h=3": ("λ 10", (7, 0)),
    "guard:weight=30,h=3": ("λ 30", (5, -12)),
    "guard:weight=90,h=1": ("h 1", (-8, 9)),
    "guard:weight=0.9,h=10": ("h 10", (6, 5)),
    "pgd_at:steps=5@2/255": ("2/255", (4, 13)),
    "pgd_at:steps=5@8/255": ("8/255", (-31, -2)),
}
"""loss -> its name in the figure, and where it is beside the point, in points"""


def lines_of(places: Sequence[Path]) -> list[dict[str, str]]:
    """Return the points of the frontiers in some places, each once, with the seconds of an iteration."""
    seconds: dict[str, list[float]] = {}
    for folder in (path.parent for place in places for path in place.rglob(METRICS)):
        seconds.setdefault(flag_of(experiment_of(folder), "--real-loss"), []).append(median(seconds_of(folder)))
    found: dict[tuple[str, str], dict[str, str]] = {}
    tables = [[place] if place.is_file() else sorted(place.glob("out-*/frontier.csv")) for place in places]
    for path in chain.from_iterable(tables):
        for line in read(path):
            loss = line["flags"].removeprefix("--real-loss ")
            if line["kind"] == "point" and line["method"] in METHODS and loss in SETTINGS:
                kept = {name: line[name] for name in KEPT}
                time = f"{median(seconds[loss]):.2f}" if loss in seconds else ""
                found[loss, line["attack"]] = {"loss": loss, **kept, "seconds": time}
    order = list(SETTINGS)
    return sorted(found.values(), key=lambda line: (order.index(line["loss"]), line["attack"] == ATTACK))


def settings_table() -> str:
    """Return the table: a line for each loss, with 95 % intervals, and the time of an iteration beside DC's."""
    found = _read()
    lines = [["loss of the real images", "clean", "PGD-10", "APGD-T", "time / `dc`", "sets, students"]]
    for loss, columns in found.items():
        first, last = columns["linf"], columns[ATTACK]
        clean = _interval(first, "clean", "clean_low", "clean_high")
        robust = [_interval(line, "robust", "low", "high") for line in (first, last)]
        ratio = float(first["seconds"]) / float(found[""]["linf"]["seconds"]) if first["seconds"] else None
        time = "" if ratio is None else f"{ratio:.1f}"
        lines.append([SETTINGS[loss], clean, *robust, time, f"{first['sets']}, {first['students']}"])
    return markdown(lines)


def _interval(line: dict[str, str], mean: str, low: str, high: str) -> str:
    numbers = [f"{float(line[name]):.1f}" for name in (mean, low, high)]
    return "{} ({} to {})".format(*numbers)


def _read() -> dict[str, dict[str, dict[str, str]]]:
    """Return loss -> column -> line."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for line in read(STORED):
        found.setdefault(line["loss"], {})[line["attack"]] = line
    return found


def draw_settings(path: Path) -> None:
    """Draw clean against robust accuracy under APGD-T, a line for each kind of loss, as PNG and SVG."""
    found = {loss: columns[ATTACK] for loss, columns in _read().items()}
    figure = empty_figure(7.6, 4.8)
    axes = figure.subplots()
    drawn: set[str] = set()
    for number, (name, losses) in enumerate(CURVES.items()):
        points = [found[loss] for loss in losses if loss in found]
        if drawn.issuperset(point["loss"] for point in points):
            continue  # nothing of its own is measured
        look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 6}
        across, up = ([float(point[field]) for point in points] for field in ("clean", "robust"))
        axes.plot(across, up, linewidth=1.5, label=name, zorder=3, **look)
        for x, y, point in zip(across, up, points, strict=True):
            arms = [[y - float(point["low"])], [float(point["high"]) - y]]
            axes.errorbar(x, y, yerr=arms, color=COLOURS[number], elinewidth=0.7, alpha=0.5, zorder=2)
            if point["loss"] in NAMED and point["loss"] not in drawn:
                text, place = NAMED[point["loss"]]
                axes.annotate(text, (x, y), place, textcoords="offset points", fontsize=7)
        drawn |= {point["loss"] for point in points}
    axes.set_xlabel("clean accuracy (%)")
    axes.set_ylabel("robust accuracy (%), APGD-T at linf 2/255")
    figure.legend(loc="outside right center", frameon=False, fontsize="small")
    plain(axes)
    save_figure(figure, path)


if __name__ == "__main__":
    lines = lines_of([Path(word) for word in sys.argv[1:]])
    STORED.write_text(written_csv(list(lines[0]), lines), encoding="utf-8")
    draw_settings(FIGURE)
    FIGURE.with_suffix(".svg").unlink()  # the docs show the PNG
