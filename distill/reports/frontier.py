"""The report of `frontier`: the points, and the methods at equal clean accuracy, as text, Markdown and CSV."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from textwrap import fill
from typing import Any

from torch import Tensor

from distill.evaluation.frontier import Comparison, Point, compare_curves, holm
from distill.evaluation.intervals import accuracy_interval
from distill.evaluation.rows import Row
from distill.reports.outcome import verdict_of
from distill.reports.tables import aligned, written_csv

__all__ = ["CurveResult", "Frontier", "Line", "PointResult", "lines_at_equal_clean", "to_csv", "to_markdown", "to_text"]

ALPHA = 0.05
"""level of the word "more robust" """
WIDTH = 100
"""columns of the text"""
CSV_COLUMNS = ("kind", "method", "setting", "flags", "control", "attack", "clean", "clean_low", "clean_high", "robust")
CSV_COLUMNS += ("low", "high", "difference", "p", "p_holm", "reach", "sets", "students", "images", "verdict")


@dataclass(frozen=True)
class PointResult:
    """The results of a method at one strength."""

    setting: str
    """short text of the strength"""
    flags: str
    """of the method"""
    rows: tuple[Row, ...]
    """of all seeds, students and columns"""
    bools: Mapping[int, Mapping[str, Tensor]]
    """seed -> name of the column -> bools (students, images): classified right?"""

    def of(self, attack: str) -> dict[int, Tensor]:
        """Return seed -> bools of a column, for the seeds that have it."""
        return {seed: columns[attack] for seed, columns in self.bools.items() if attack in columns}

    def accuracy(self, attack: str) -> tuple[float, float, float]:
        """Return mean and 95 % interval (low, high) of a column in percent."""
        sets = list(self.of(attack).values())
        mean = sum(bools.double().mean().item() for bools in sets) / len(sets)
        return 100 * mean, *accuracy_interval(sets)

    def verdict(self, attack: str) -> str:
        """Return "ok", or why the accuracy of a column is in doubt."""
        return verdict_of([row.verdict for row in self.rows if row.attack == attack])


@dataclass(frozen=True)
class CurveResult:
    """A method or a control with its points, in the order of strengths; points without results are left out."""

    name: str
    points: tuple[PointResult, ...]
    control: bool


@dataclass(frozen=True)
class Frontier:
    """All results of a figure."""

    title: str
    """data, images per class, network"""
    curves: tuple[CurveResult, ...]
    reference: CurveResult
    """the method with which all are compared: its one point, or, with `at`, its curve"""
    at: float | None
    """clean accuracy in percent; None for that of the reference"""
    attacks: tuple[str, ...]
    """names of the columns in the order of the tables"""
    attack: str
    """the column by which methods are compared"""
    notes: tuple[str, ...] = ()
    """about what is missing"""


@dataclass(frozen=True)
class Line:
    """A line of the table at equal clean accuracy."""

    curve: CurveResult
    comparison: Comparison
    p_holm: float | None
    """corrected for the number of methods, or of controls; None where the curve does not reach the clean accuracy"""
    doubts: tuple[str, ...]
    """of the points between which the curve was read"""

    @property
    def reading(self) -> str:
        """The result in words."""
        found = self.comparison
        if self.p_holm is None:
            return "less accurate"
        if self.p_holm >= ALPHA:
            return "not shown"
        twice = found.difference > found.high - found.low  # twice the half width of the interval
        return ("more robust" if found.difference > 0 else "less robust") + " **" * twice


def lines_at_equal_clean(frontier: Frontier, attack: str) -> list[Line]:
    """Return a line for each curve but the reference's; curves without the column are left out.

    Args:
        frontier: the results.
        attack: name of the column.
    """
    reference = _points(frontier.reference, attack)
    if not reference:
        return []
    found: list[tuple[CurveResult, Comparison]] = []
    for curve in frontier.curves:
        points = _points(curve, attack)
        if curve.name != frontier.reference.name and points and _common(points, reference):
            same = _same_sets((*_having(curve, attack), *_having(frontier.reference, attack)))
            found.append((curve, compare_curves(points, reference, frontier.at, same_sets=same)))
    corrected: dict[str, float] = {}
    for control in (False, True):
        family = [(c.name, x.p_value) for c, x in found if c.control == control and x.reach != "below"]
        corrected |= zip([name for name, _ in family], holm([p for _, p in family]), strict=True)
    return [
        Line(curve, comparison, corrected.get(curve.name), _doubts(curve, comparison.weights, attack))
        for curve, comparison in found
    ]


def _having(curve: CurveResult, attack: str) -> list[PointResult]:
    return [point for point in curve.points if point.of(attack)]


def _points(curve: CurveResult, attack: str) -> list[Point]:
    return [Point(point.of("clean"), point.of(attack)) for point in _having(curve, attack)]


def _common(points: Sequence[Point], reference: Sequence[Point]) -> bool:
    """Return whether all points have a seed in common."""
    return bool(set.intersection(*({*point.robust} for point in (*points, *reference))))


def _same_sets(points: Sequence[PointResult]) -> bool:
    """Return whether all points have the same distilled set for each seed."""
    sets: dict[int, set[str]] = {}
    for row in (row for point in points for row in point.rows):
        sets.setdefault(row.seed, set()).add(row.set)
    return all(len(names) == 1 for names in sets.values())


def _doubts(curve: CurveResult, weights: Sequence[float], attack: str) -> tuple[str, ...]:
    points = [point for point, weight in zip(_having(curve, attack), weights, strict=True) if weight > 0]
    verdicts = {f"{curve.name}, {point.setting}, {attack}": point.verdict(attack) for point in points}
    return tuple(f"? {name}: {verdict}" for name, verdict in verdicts.items() if verdict != "ok")


# --- the two tables ------------------------------------------------------------------------------------------------


def _plus_minus(accuracy: tuple[float, float, float]) -> str:
    mean, low, high = accuracy
    return f"{mean:.1f} ±{max(high - mean, mean - low):.1f}"


def _table_of_points(frontier: Frontier) -> tuple[list[list[str]], list[str]]:
    """Return the lines of the table, and a note for each point in doubt."""
    lines = [["", "setting", "clean", *frontier.attacks, "n"]]
    doubts: dict[str, list[str]] = {}
    for curve in frontier.curves:
        for number, point in enumerate(curve.points):
            line = ["" if number else curve.name, point.setting]
            for attack in ("clean", *frontier.attacks):
                if not point.of(attack):
                    line.append("-")
                    continue
                doubt = point.verdict(attack)
                line.append(_plus_minus(point.accuracy(attack)) + ("" if doubt == "ok" else " ?"))
                if doubt != "ok":
                    doubts.setdefault(f"? {curve.name}, {point.setting}: {doubt}", []).append(attack)
            lines.append([*line, _number(point)])
    return lines, [f"{text} in {', '.join(attacks)}" for text, attacks in doubts.items()]


def _number(point: PointResult) -> str:
    """Return sets x students."""
    students = dict.fromkeys(len(columns["clean"]) for columns in point.bools.values())
    return f"{len(point.bools)}x{'/'.join(map(str, students))}"


def _table_at_equal_clean(frontier: Frontier, attack: str, rows: Sequence[Line]) -> list[list[str]]:
    lines = [["", "clean", "robust", "difference", "95 % interval", "p", ""]]
    own = _having(frontier.reference, attack)
    if own and frontier.at is None:
        numbers = [f"{own[0].accuracy(name)[0]:.1f}" for name in ("clean", attack)]
        doubt = "" if own[0].verdict(attack) == "ok" else " ?"
        lines.append([frontier.reference.name, numbers[0], numbers[1] + doubt, "", "", "", "reference"])
    for row in sorted(rows, key=lambda row: row.curve.control):
        found = row.comparison
        beside = "" if found.reach == "between" else f" ({found.clean - found.at:+.1f})"
        lines.append(
            [
                row.curve.name,
                f"{found.clean:.1f}{beside}",
                f"{found.robust:.1f}" + (" ?" if row.doubts else ""),
                f"{found.difference:+.1f}",
                f"{found.low:+.1f} to {found.high:+.1f}",
                "-" if row.p_holm is None else f"{row.p_holm:.2g}",
                row.reading,
            ]
        )
    return lines


def _shown(frontier: Frontier) -> list[str]:
    """Return the columns with a table at equal clean accuracy: that of the comparison, then AutoAttack."""
    others = [name for name in frontier.attacks if name.startswith("autoattack") and name != frontier.attack]
    return [frontier.attack, *others]


def _what_is_compared(frontier: Frontier, attack: str) -> str:
    name = frontier.reference.name
    if frontier.at is not None:
        return f"{attack} at {frontier.at:g} % clean accuracy; differences to {name} there"
    setting = frontier.reference.points[0].setting if frontier.reference.points else "not finished"
    return f"{attack} at the clean accuracy of {name} ({setting}); differences to that point"


LEGEND = (
    "Accuracy in %, mean ±half the 95 % interval over sets, students, images; n: sets x students.",
    "Curves are interpolated between neighbours in the order of their settings, never extrapolated: a",
    "curve that does not have the clean accuracy is compared at its nearest point (distance in brackets).",
    "Interval, p: bootstrap over sets and test images, Student's t; p after Holm's correction over",
    "methods, over controls. more robust: p < 0.05; **: by more than twice the half width of the",
    "interval; not shown: p >= 0.05; less accurate: no point is as accurate, nothing is claimed. ?: a",
    "check doubts the number.",
)


Lines = Mapping[str, Sequence[Line]]
"""name of a column -> its lines at equal clean accuracy, as of `lines_at_equal_clean`"""


def _notes(frontier: Frontier, lines: Lines, doubts: Sequence[str]) -> list[str]:
    """Return what is counted, what is missing, and why numbers are in doubt."""
    compared = [line.comparison for attack in _shown(frontier) for line in lines[attack]]
    units = dict.fromkeys(f"{found.units} {found.unit}" for found in compared)
    rows = [row for curve in frontier.curves for point in curve.points for row in point.rows[:1]]
    images = dict.fromkeys(f"{row.images} test images of {row.dataset}" for row in rows)
    versions = dict.fromkeys(f"version {row.version}" for row in rows if row.version)
    counted = f"Counted: {', '.join([*units, *images, *versions])}."
    return [counted, *frontier.notes, *doubts]


def to_text(frontier: Frontier, lines: Lines) -> str:
    """Return both tables for a terminal."""
    points, doubts = _table_of_points(frontier)
    parts = [frontier.title, aligned(points)]
    for attack in _shown(frontier):
        parts += [_what_is_compared(frontier, attack), aligned(_table_at_equal_clean(frontier, attack, lines[attack]))]
    wrapped = partial(fill, width=WIDTH, break_long_words=False, break_on_hyphens=False)
    notes = map(wrapped, _notes(frontier, lines, doubts))
    return "\n".join([*parts, *LEGEND, *notes]) + "\n"


def to_markdown(frontier: Frontier, lines: Lines) -> str:
    """Return both tables as Markdown, with one at equal clean accuracy for every column."""
    points, doubts = _table_of_points(frontier)
    parts = [f"{frontier.title}\n", _as_markdown(points)]
    for attack in (*_shown(frontier), *(attack for attack in frontier.attacks if attack not in _shown(frontier))):
        parts.append(_what_is_compared(frontier, attack) + "\n")
        parts.append(_as_markdown(_table_at_equal_clean(frontier, attack, lines[attack])))
    notes = [" ".join(LEGEND).replace("**:", "\\*\\*:"), *_notes(frontier, lines, doubts)]
    return "\n".join(parts) + "".join(f"\n{note}\n" for note in notes)


def _as_markdown(lines: Sequence[Sequence[str]]) -> str:
    header, *body = [[cell.replace("**", "\\*\\*") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *body))


def to_csv(frontier: Frontier, lines: Lines) -> str:
    """Return a line for each point and column (kind: point), and for each method and column (kind: equal_clean)."""
    found = [
        _point_fields(curve, point, attack)
        for curve in frontier.curves
        for point in curve.points
        for attack in frontier.attacks
        if point.of(attack)
    ]
    found += [_line_fields(line, attack) for attack in frontier.attacks for line in lines[attack]]
    return written_csv(CSV_COLUMNS, (dict.fromkeys(CSV_COLUMNS, "") | line for line in found))


def _point_fields(curve: CurveResult, point: PointResult, attack: str) -> dict[str, Any]:
    names = ("clean", "clean_low", "clean_high", "robust", "low", "high")
    numbers = (*point.accuracy("clean"), *point.accuracy(attack))
    found = {name: f"{number:.2f}" for name, number in zip(names, numbers, strict=True)}
    found |= {"kind": "point", "method": curve.name, "setting": point.setting, "flags": point.flags, "attack": attack}
    counts = {"sets": len(point.bools), "students": sum(len(columns["clean"]) for columns in point.bools.values())}
    found |= counts | {"images": point.rows[0].images, "control": int(curve.control), "verdict": point.verdict(attack)}
    return found


def _line_fields(line: Line, attack: str) -> dict[str, Any]:
    found = line.comparison
    numbers = {name: f"{getattr(found, name):.2f}" for name in ("clean", "robust", "difference", "low", "high")}
    p_holm = "" if line.p_holm is None else f"{line.p_holm:.3g}"
    words = {"kind": "equal_clean", "method": line.curve.name, "attack": attack, "reach": found.reach}
    words |= {"p": f"{found.p_value:.3g}", "p_holm": p_holm, "verdict": "; ".join(line.doubts) or "ok"}
    return numbers | words | {"sets": f"{found.units} {found.unit}", "control": int(line.curve.control)}
