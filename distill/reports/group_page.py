"""The page of several runs: a table, differences with p-values, clean against robust accuracy, the images."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from markupsafe import Markup
from torch import Tensor

from distill.errors import InputError
from distill.evaluation.frontier import holm
from distill.evaluation.intervals import accuracy_interval
from distill.evaluation.intervals import difference as difference_of
from distill.evaluation.row_files import find_rows
from distill.evaluation.rows import ColumnKey, LineKey, Row
from distill.phrases import counted
from distill.reports.class_names import readable
from distill.reports.outcome import bools_of, verdict_of
from distill.reports.page import Chart, Page, Part, Picture, Pictures, Section, Table, Text
from distill.reports.pictures import file_address, row_of_images
from distill.reports.run_results import accuracy_cell
from distill.reports.sets import set_of_run
from distill.reports.settings import distinct_labels, settings_of
from distill.reports.summary import headings
from distill.reports.svg import Mark, line_chart
from distill.runs.foreign import read_text

__all__ = ["frontier_page", "group_page"]

SETS = 40
"""sets whose images are shown, at most"""
COLUMNS = 12
"""images of a set that are shown, at most, one of each class"""
HARD = ("autoattack", "worst", "apgd_t", "pgd_ce_margin", "pgd")
"""attacks in the order in which one is taken for the figure of clean against robust accuracy"""


class _Group:
    """The runs of a line of the table: they differ in their seed alone.

    Args:
        label: of the line.
        folders: of the runs.
        rows: of all of them.
    """

    def __init__(self, label: str, folders: Sequence[Path], rows: Sequence[Row]):
        self.label, self.folders, self.rows = label, folders, rows
        found = [bools_of(folder, [row for row in rows if row.folder == folder]) for folder in folders]
        shared = [column for column in found[0] if all(column in one for one in found)]
        self.sets: dict[ColumnKey, list[Tensor]] = {column: [one[column] for one in found] for column in shared}
        self.test = rows[0].test, rows[0].images

    def mean(self, column: ColumnKey) -> float:
        """Return the accuracy of a column in percent, each set with equal weight."""
        return 100 * torch.stack([bools.double().mean() for bools in self.sets[column]]).mean().item()

    def doubted(self, column: ColumnKey) -> bool:
        """Return whether a check doubts the accuracy of a column."""
        return verdict_of([row.verdict for row in self.rows if row.column == column]) != "ok"

    @property
    def count(self) -> str:
        """Sets x students."""
        students = dict.fromkeys(len(bools) for bools in next(iter(self.sets.values())))
        return f"{len(self.folders)} x {'/'.join(map(str, students))}"


def group_page(folders: Sequence[Path], title: str) -> Page:
    """Return the page of several finished runs, a part for each data set and number of images.

    Args:
        folders: of the runs, or folders with runs in them.
        title: of the page.

    Raises:
        InputError: there is no finished run, or a file is damaged.
    """
    rows = find_rows(folders)
    places: dict[tuple[str, int], dict[LineKey, list[Row]]] = {}
    for row in rows:
        places.setdefault((row.dataset, row.ipc), {}).setdefault(row.line, []).append(row)
    sections = []
    for (dataset, ipc), lines in places.items():
        groups, left_out = _groups(lines)
        name = f"{dataset}, {counted(ipc, 'image')} per class"
        parts: list[Part] = [Text(line) for line in left_out]
        if groups:
            parts = [_table(groups), *_differences(groups), *_clean_against_robust(groups), *_images(groups), *parts]
        sections.append(Section(name, parts))
    runs = len({row.folder for row in rows})
    return Page(title, f"{counted(runs, 'run')}, {counted(len({row.method for row in rows}), 'method')}", sections)


def _groups(lines: Mapping[LineKey, list[Row]]) -> tuple[list[_Group], list[str]]:
    """Return the lines with their results, and a sentence for each line whose results cannot be read."""
    first = [next(row.folder for row in rows if row.folder) for rows in lines.values()]
    labels = distinct_labels([settings_of(folder) | {"seed": 0} for folder in first])
    groups, left_out = [], []
    for label, rows in zip(labels, lines.values(), strict=True):
        folders = list(dict.fromkeys(row.folder for row in rows if row.folder))
        try:
            groups.append(_Group(label, folders, rows))
        except InputError as error:
            left_out.append(f"{label} is left out: {error}")
    return groups, left_out


def _columns(groups: Sequence[_Group]) -> dict[ColumnKey, str]:
    return headings(column for group in groups for column, sets in group.sets.items() if sets[0].ndim == 2)


def _table(groups: Sequence[_Group]) -> Table:
    columns = _columns(groups)
    lines = []
    for group in groups:
        cells: list[str | Markup] = [group.label]
        for column in columns:
            if column not in group.sets:
                cells.append("")
                continue
            low, high = accuracy_interval(group.sets[column])
            mean = accuracy_cell(group.mean(column), group.doubted(column))
            cells.append(Markup("{} <small>({:.1f} to {:.1f})</small>").format(mean, low, high))
        lines.append([*cells, group.count])
    caption = "Accuracy in percent with its 95 % interval; ?: a check doubts the number. n: sets x students."
    return Table(["", *columns.values(), "n"], lines, caption)


def _differences(groups: Sequence[_Group]) -> list[Part]:
    """Return the differences of all groups to the first one, of those with the same test images."""
    reference, *others = groups
    others = [group for group in others if group.test == reference.test]
    columns = {column: name for column, name in _columns(groups).items() if column in reference.sets}
    if not others or not columns:
        return []
    found = {
        (group.label, column): difference_of(group.sets[column], reference.sets[column])
        for group in others
        for column in columns
        if column in group.sets
    }
    corrected: dict[tuple[str, ColumnKey], float] = {}
    for column in columns:
        family = [key for key in found if key[1] == column]
        corrected |= zip(family, holm([found[key].p_value for key in family]), strict=True)
    lines = []
    for group in others:
        cells: list[str | Markup] = [group.label]
        for column in columns:
            one = found.get((group.label, column))
            p = "" if one is None else _p_text(corrected[group.label, column])
            cells.append("" if one is None else Markup("{:+.1f} <small>({})</small>").format(one.value, p))
        lines.append(cells)
    unit = next(iter(found.values())).unit
    caption = (
        f"Difference to {reference.label} in points, with p (Welch's t test over {unit} and test images, two-sided, "
        "after Holm's correction over the lines of a column)."
    )
    return [Table(["", *columns.values()], lines, caption)]


def _p_text(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _clean_against_robust(groups: Sequence[_Group]) -> list[Part]:
    columns = _columns(groups)
    clean = next((column for column in columns if column.attack == "clean"), None)
    attacks = [c for name in HARD for c in columns if c.attack.partition("@")[0].partition(":")[0] == name]
    attacks += [column for column in columns if column.threat is not None]
    attack = next((column for column in attacks if sum(column in group.sets for group in groups) > 1), None)
    shown = [group for group in groups if clean in group.sets and attack in group.sets]
    if clean is None or attack is None or len(shown) < 2:
        return []
    lines = {
        group.label: [Mark(group.mean(clean), group.mean(attack), *accuracy_interval(group.sets[attack]))]
        for group in shown
    }
    name = columns[attack]
    chart = line_chart(
        lines, title=f"Clean accuracy against accuracy under {name}", across="clean accuracy (%)", up=f"{name} (%)"
    )
    return [Chart(chart, f"Clean accuracy against accuracy under {name}, with 95 % intervals.")]


def _images(groups: Sequence[_Group]) -> list[Part]:
    rows = []
    for group in groups[:SETS]:
        distilled = set_of_run(group.folders[0], group.rows[0].set)
        if distilled is None:
            continue
        classes, known = distilled.image_classes, readable(distilled.classes)
        which = [int((classes == c).nonzero()[0]) for c in classes.unique()[:COLUMNS]]
        names = ", ".join(known[int(classes[place])] for place in which)
        images = row_of_images(distilled.images[torch.tensor(which)])
        rows.append(Picture(images, f"{group.label}: {names}", group.label, len(which)))
    names = rows[0].text.partition(": ")[2] if rows else ""
    return [Pictures(rows, f"The first distilled image of each class, of the first seed: {names}.")] if rows else []


def frontier_page(folder: Path) -> Page:
    """Return the page of a comparison at equal clean accuracy, from the files that `frontier` wrote.

    Args:
        folder: with frontier.csv and frontier.svg.

    Raises:
        InputError: a file is missing or damaged.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(read_text(folder / "frontier.csv"))))
        figure = file_address(folder / "frontier.svg")
        command, notes = read_text(folder / "frontier.md").split("\n", 1)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no whole frontier ({error}); run the command of the frontier again") from None
    attacks = list(dict.fromkeys(line["attack"] for line in lines))
    picture = Picture(figure, "Clean against robust accuracy of all methods and controls")
    caption = (
        "Clean accuracy against accuracy under attack. Crosses are 95 % intervals, grey markers are controls, and the "
        "dashed line is the clean accuracy of the comparison."
    )
    sections = [Section("Figure", [Pictures([picture], caption, wide=True)])]
    for attack in attacks:
        of_attack = [line for line in lines if line["attack"] == attack and line["kind"] == "equal_clean"]
        header = ["", "clean", "robust", "difference", "95 % interval", "p", "clean accuracy reached"]
        rows = [
            [
                line["method"],
                _one(line["clean"]),
                accuracy_cell(float(line["robust"]), line["verdict"] != "ok"),
                f"{float(line['difference']):+.1f}",
                f"{float(line['low']):+.1f} to {float(line['high']):+.1f}",
                _p_text(float(line["p_holm"])) if line["p_holm"] else "-",
                {"between": "yes", "above": "more", "below": "less"}.get(line["reach"], ""),
            ]
            for line in sorted(of_attack, key=lambda line: (line["control"], -float(line["robust"])))
        ]
        caption = "Robust accuracy (%) at the clean accuracy of the reference; p after Holm's correction; ?: in doubt."
        sections.append(Section(f"Equal clean accuracy, {attack}", [Table(header, rows, caption)]))
    points = [line for line in lines if line["kind"] == "point"]
    header = ["", "setting", "attack", "clean", "robust", "95 % interval", "n"]
    rows = [
        [
            line["method"],
            line["setting"],
            line["attack"],
            _one(line["clean"]),
            accuracy_cell(float(line["robust"]), line["verdict"] != "ok"),
            f"{_one(line['low'])} to {_one(line['high'])}",
            f"{line['sets']} x {int(line['students']) // int(line['sets'])}",
        ]
        for line in points
    ]
    sections.append(Section("All points", [Table(header, rows, "Accuracy (%) of each point; n: sets x students.")]))
    repeated = [Text(line) for line in notes.splitlines() if line.startswith(("Computed", "Counted", "Not finished"))]
    sections.append(Section("How it was made", [Text(command.strip("`")), *repeated]))
    return Page(f"Robust accuracy at equal clean accuracy: {folder.name}", "", sections)


def _one(text: str) -> str:
    return f"{float(text):.1f}"
