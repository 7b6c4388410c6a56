"""`bash run.sh frontier DATASET`: clean against robust accuracy of methods at several strengths.

Each point of a curve is an ordinary run per seed, in a separate process, as in `benchmark`: finished runs are skipped,
interrupted ones resume, a failed run does not stop the others. Then the tables and the figure are written.
"""

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import tyro

from distill.app.cell_plan import part_of
from distill.app.cell_runs import print_cells, report_failures, run_missing
from distill.app.cells import Cell
from distill.app.flags import HELP, parse
from distill.app.frontier_cells import (
    FrontierCommand,
    PlannedCurve,
    cell_groups,
    known_methods,
    planned_curves,
    reference_point,
)
from distill.data import facts_of
from distill.errors import InputError
from distill.evaluation.column_kinds import AttackColumn
from distill.evaluation.columns import columns
from distill.evaluation.row_files import find_rows
from distill.experiment import Evaluation
from distill.methods.method import Method
from distill.phrases import counted
from distill.reports.frontier import (
    CurveResult,
    Frontier,
    Line,
    PointResult,
    lines_at_equal_clean,
    to_csv,
    to_markdown,
    to_text,
)
from distill.reports.frontier_figure import draw_frontier
from distill.reports.group_page import frontier_page
from distill.reports.outcome import bools_of
from distill.reports.page import render
from distill.runs.files import write_text
from distill.runs.provenance import computed_with

__all__ = ["run_frontier"]

STRONGEST = "autoattack"
"""attack of --autoattack"""
BETWEEN_REPORTS = 60.0
"""seconds between two reports while cells run; a report takes seconds"""
FILES = ("frontier.md", "frontier.csv", "frontier.png", "frontier.svg", "report.html")


def run_frontier(flags: list[str], methods: Mapping[str, Method]) -> int:
    """Run the missing cells, and write tables and figure.

    Args:
        flags: the command-line words after `frontier`.
        methods: all methods, by name.

    Returns:
        the exit code: 0 if every cell is done, 1 if some failed.

    Raises:
        InputError: a name is unknown, or a value out of range; then no cell was run.
    """
    if not flags or (flags[0].startswith("-") and flags[0] not in HELP):
        raise InputError("frontier takes a data set first: bash run.sh frontier DATASET [--flags]")
    command = parse(FrontierCommand, FrontierCommand(tyro.MISSING), flags, "bash run.sh frontier")
    methods = known_methods(command, methods)
    names, claim = _columns(command)
    curves = planned_curves(command, methods, command.attacks)
    groups = cell_groups(curves)
    mine = [cell for group in (part_of(groups, command.cell) if command.cell else groups) for cell in group]
    if command.dry_run:
        print_cells(mine)
        return 0
    folder = _folder(command, curves)
    report = _Report(command, methods, curves, names, claim.name, folder)
    print(report.announcement(len(mine)), file=sys.stderr)
    failed = run_missing("frontier", mine, folder / "logs", command.jobs, command.device, report.write_again)
    every = list(mine)
    if command.autoattack and not command.cell and not failed:
        again = _attacked_by_autoattack(command, methods, report, claim)
        every += again
        failed |= run_missing("autoattack", again, folder / "logs", command.jobs, command.device, report.write_again)
    text, damaged = report.write()
    failed |= {cell: trouble for cell, trouble in damaged.items() if cell in every}
    print(text, end="")
    if text:
        print(f"saved in {folder}: {', '.join(FILES)}", file=sys.stderr)
    return report_failures(failed, every, folder / "logs")


def _columns(command: FrontierCommand) -> tuple[list[str], AttackColumn]:
    """Return the names of all columns, and the column by which methods are compared.

    Raises:
        InputError: an attack is unknown, or no attack with a threat is --column.
    """
    facts = facts_of(command.dataset, command.data_dir, command.image_size)
    found = columns(Evaluation(attacks=command.attacks), facts.channels, facts.size)
    if not found:
        raise InputError("--attacks is empty; it must name at least one attack")
    column = found[-1]
    if command.column is not None:
        (wanted,) = columns(Evaluation(attacks=command.column), facts.channels, facts.size) or [None]
        if wanted is None or wanted.name not in [each.name for each in found]:
            raise InputError(f"--column is {command.column}, which is not among the --attacks {command.attacks}")
        column = wanted
    if not isinstance(column, AttackColumn):
        raise InputError(f"--column is {column.name}; it takes an attack with a threat, such as apgd_t@linf")
    return [each.name for each in found], column


def _folder(command: FrontierCommand, curves: Sequence[PlannedCurve]) -> Path:
    """Return the folder of tables and figure."""
    if command.out is not None:
        return command.out
    return command.runs / "frontier" / f"{curves[0].cells[0][0].data}-ipc{command.ipc}"


def _attacked_by_autoattack(
    command: FrontierCommand, methods: Mapping[str, Method], report: "_Report", claim: AttackColumn
) -> list[Cell]:
    """Return cells that add AutoAttack to the most robust curves, at the points between which they were read.

    Args:
        command: the settings.
        methods: all methods, by name.
        report: whose cells are done.
        claim: column that ranks the curves, with the threat of AutoAttack.
    """
    assert claim.threat is not None  # `_columns` takes no other
    name = f"{STRONGEST}@{claim.threat.written}"
    if name not in report.names:
        report.names.append(name)
    frontier, _ = report.results()
    lines = sorted(lines_at_equal_clean(frontier, claim.name), key=lambda line: -line.comparison.robust)
    attacked: dict[str, set[str]] = {}
    for line in [line for line in lines if line.comparison.reach != "below"][: command.autoattack]:
        points = [point for point in line.curve.points if point.of(claim.name)]
        weights = line.comparison.weights
        attacked[line.curve.name] = {p.flags for p, weight in zip(points, weights, strict=True) if weight > 0}
    of_reference = {point.flags for point in frontier.reference.points}
    attacked[frontier.reference.name] = attacked.get(frontier.reference.name, set()) | of_reference
    print(f"AutoAttack ({name}) on {', '.join(attacked)}", file=sys.stderr)
    with_it = planned_curves(command, methods, f"{command.attacks},{name}")
    return [
        cell
        for planned in with_it
        for point, cells in zip(planned.curve.points, planned.cells, strict=True)
        for cell in cells
        if point.flags in attacked.get(planned.curve.name, ())
    ]


class _Report:
    """Tables and figure of the finished cells."""

    def __init__(
        self,
        command: FrontierCommand,
        methods: Mapping[str, Method],
        curves: Sequence[PlannedCurve],
        names: list[str],
        attack: str,
        folder: Path,
    ):
        self.command, self.curves, self.names, self.attack, self.folder = command, curves, names, attack, folder
        self.reference = next(each for each in curves if each.curve.name == command.reference)
        self.reference_point = reference_point(command, self.reference, methods)
        self.last = time.monotonic()

    def announcement(self, cells: int) -> str:
        """Return what will be run and compared, for a message."""
        points = sum(len(each.curve.points) for each in self.curves)
        setting = self.reference.curve.points[self.reference_point].setting
        clean = f"the clean accuracy of {self.command.reference} ({setting})"
        clean = clean if self.command.at is None else f"{self.command.at:g} % clean accuracy"
        controls, seeds = sum(each.curve.control for each in self.curves), self.command.seeds
        of = f"{counted(len(self.curves) - controls, 'method')} and {counted(controls, 'control')}"
        return (
            f"{counted(points, 'point')} of {of}, {counted(seeds, 'seed')} each: {counted(cells, 'cell')} here. "
            f"Compared: robust accuracy ({self.attack}) at {clean}"
        )

    def results(self) -> tuple[Frontier, dict[Cell, str]]:
        """Return the results of all finished cells, and the cells whose results cannot be read, with the reason.

        Raises:
            InputError: the cells were evaluated on different test images.
        """
        damaged: dict[Cell, str] = {}
        missing: list[str] = []
        found: list[CurveResult] = []
        chosen: tuple[PointResult, ...] = ()
        for planned in self.curves:
            points = []
            for number, (point, cells) in enumerate(zip(planned.curve.points, planned.cells, strict=True)):
                result = _point_result(point.setting, point.flags, cells, damaged)
                if len(result.bools) < len(cells):
                    missing.append(f"{planned.curve.name}, {point.setting}: {len(result.bools)} of {len(cells)} seeds")
                points += [result] * bool(result.bools)
                if planned is self.reference and number == self.reference_point and result.bools:
                    chosen = (result,)
            found.append(CurveResult(planned.curve.name, tuple(points), planned.curve.control))
        rows = [row for curve in found for point in curve.points for row in point.rows]
        if len({(row.images, row.test) for row in rows}) > 1:
            raise InputError(f"the runs below {self.command.runs / 'frontier'} were evaluated on different test images")
        reference = next(curve for curve in found if curve.name == self.command.reference)
        reference = replace(reference, points=chosen) if self.command.at is None else reference
        networks = dict.fromkeys(row.backbone for row in rows)
        title = f"{self.curves[0].cells[0][0].data}, ipc {self.command.ipc}, students {', '.join(networks)}"
        notes = [f"Not finished: {'; '.join(missing)}."] * bool(missing)
        notes += ["Students have several networks; --backbone gives all the same."] * (len(networks) > 1)
        done = [cell.folder for planned in self.curves for cells in planned.cells for cell in cells if cell.done]
        notes += [line for line in [computed_with(done)] if line]
        columns = {"attacks": tuple(self.names), "attack": self.attack, "notes": tuple(notes)}
        return Frontier(title, tuple(found), reference, self.command.at, **columns), damaged

    def write_again(self) -> None:
        """Write the report, unless the last one is recent."""
        if time.monotonic() - self.last > BETWEEN_REPORTS:
            self.write()

    def write(self) -> tuple[str, dict[Cell, str]]:
        """Write tables and figure of the finished cells.

        Returns:
            the tables as text, "" if no cell is finished, and the cells whose results cannot be read.
        """
        frontier, damaged = self.results()
        if not any(curve.points for curve in frontier.curves):
            return "", damaged
        lines: dict[str, list[Line]] = {name: lines_at_equal_clean(frontier, name) for name in frontier.attacks}
        command = f"`bash run.sh frontier {shlex.join(_shown_flags(self.command))}`"
        write_text(self.folder / FILES[0], f"{command}\n\n{to_markdown(frontier, lines)}")
        write_text(self.folder / FILES[1], to_csv(frontier, lines))
        draw_frontier(frontier, self.folder / FILES[2])
        write_text(self.folder / FILES[4], render(frontier_page(self.folder)))
        self.last = time.monotonic()
        return to_text(frontier, lines), damaged


def _shown_flags(command: FrontierCommand) -> list[str]:
    """Return the flags of a command that differ from the defaults and on which its results depend."""
    default, words = FrontierCommand(command.dataset), [command.dataset]
    for name in FrontierCommand.__dataclass_fields__:
        value = getattr(command, name)
        if name in ("dataset", "jobs", "cell", "dry_run", "data_dir", "runs", "device", "out"):
            continue
        if value != getattr(default, name):
            words += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]
    return words


def _point_result(setting: str, flags: str, cells: Sequence[Cell], damaged: dict[Cell, str]) -> PointResult:
    """Return the results of the finished cells of a point; damaged cells are added to `damaged`.

    Args:
        setting: of the point.
        flags: of the point.
        cells: of the point, by seed.
        damaged: cells whose results cannot be read, with the reason.
    """
    rows, bools = [], {}
    for seed, cell in enumerate(cells):
        if not cell.done:
            continue
        try:
            found = [replace(row, dataset=cell.data) for row in find_rows([cell.folder])]
            bools[seed] = {column.attack: table for column, table in bools_of(cell.folder, found).items()}
        except InputError as error:
            damaged[cell] = str(error)
            continue
        rows += found
    return PointResult(setting, flags, tuple(rows), bools)
