"""`bash run.sh compare A B` or `compare A... --against B...`: compare finished runs on the same test images.

A side (A or B) is one run, or several runs that differ only in their seed: several distilled sets of one method. The
population to which the interval and the p-value generalise depends on the number of sets and students of a side, and
is printed: see `distill.evaluation.intervals.difference`. Columns are compared only if attack, settings and threat are
equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from distill.app.flags import parse, picture_named
from distill.errors import InputError
from distill.evaluation.intervals import Difference, difference, unit_of
from distill.evaluation.row_files import find_rows
from distill.evaluation.rows import ColumnKey, Row, threat_text
from distill.phrases import counted
from distill.reports.difference_figure import draw_differences
from distill.reports.indices import UNBIASED
from distill.reports.outcome import bools_of, verdict_of
from distill.reports.settings import differing_settings, settings_of
from distill.reports.summary import headings
from distill.reports.tables import aligned

__all__ = ["run_compare"]

USAGE = "compare takes the folders of two runs: bash run.sh compare A B, or of several: compare A... --against B..."
SAME = ("method", "dataset", "ipc", "backbone", "loss", "recipe")
"""fields of a row that must be equal for all runs of a side, beside the labels"""


@dataclass(frozen=True)
class CompareCommand:
    """Compare finished runs on the same test images: accuracy of B minus accuracy of A."""

    places: tyro.conf.Positional[tuple[Path, ...]] = ()
    """two folders, A and B; with --against all folders of A. A folder is a run, or contains runs of several seeds"""
    against: tuple[Path, ...] = ()
    """folders of B, if A or B has several"""
    plot: Path | None = None
    """figure to write, FILE.png and FILE.svg: the difference of each column with its interval"""


@dataclass(frozen=True)
class Side:
    """All runs of A, or of B."""

    places: tuple[Path, ...]
    """the folders of the command line"""
    rows: list[Row]
    """rows of all runs"""
    names: list[str]
    """digest of each distilled set"""
    sets: list[dict[ColumnKey, Tensor]]
    """for each distilled set: column -> bools as `bools_of` returns them, for the columns that all runs have"""

    @property
    def columns(self) -> list[ColumnKey]:
        """The columns that any of the runs has."""
        return list(dict.fromkeys(row.column for row in self.rows))

    def verdict(self, column: ColumnKey) -> str:
        """Return the verdict of a column over all students."""
        return verdict_of([row.verdict for row in self.rows if row.column == column])


def run_compare(flags: list[str]) -> int:
    """Print the differences.

    Returns:
        the exit code.

    Raises:
        InputError: a side is missing, a folder has no finished run, the runs of a side differ in more than their seed,
            or A and B were evaluated on different images or have no column in common, or --plot names no picture.
    """
    command = parse(CompareCommand, CompareCommand(), flags, "bash run.sh compare")
    plot = picture_named(command.plot)
    has_against = any(flag.startswith("--against") for flag in flags)
    sides = (command.places, command.against) if has_against else (command.places[:1], command.places[1:])
    if not all(sides) or not (has_against or len(command.places) == 2):
        raise InputError(USAGE)
    a, b = (_side(name, places) for name, places in zip("AB", sides, strict=True))
    _refuse_other_images(a, b)
    names = headings([*a.columns, *b.columns])
    shared = [column for column in a.sets[0] if column in b.sets[0] and a.sets[0][column].ndim == 2]
    left_out = _left_out(a, b, shared, names)
    if not shared:
        raise InputError(f"A and B have no column in common: {'; '.join(left_out)}")
    results = {column: _difference(a, b, column) for column in shared}
    print(aligned(_table(a, b, results, names)), end="")
    print("\n".join([_legend("A", a), _legend("B", b), *_notes(a, b, shared), *left_out]))
    for column in shared:
        for letter, side in (("A", a), ("B", b)):
            if side.verdict(column) != "ok":
                print(f"? {letter}, {names[column]}: {side.verdict(column)}")
    if plot is not None:
        draw_differences(
            plot,
            {names[column]: result for column, result in results.items()},
            title=f"{_label(b, a)} (B) and {_label(a, b)} (A), {a.rows[0].dataset}",
            doubted=[names[column] for column in shared if not a.verdict(column) == b.verdict(column) == "ok"],
        )
    return 0


def _difference(a: Side, b: Side, column: ColumnKey) -> Difference:
    of_a, of_b = ([bools[column] for bools in side.sets] for side in (a, b))
    return difference(of_b, of_a, matched=a.names == b.names and len(a.names) > 1)


def _label(side: Side, other: Side) -> str:
    """Return the method of a side; where both sides have the same one, its first folder."""
    method = side.rows[0].method
    return method if method != other.rows[0].method else str(side.places[0])


def _table(
    a: Side, b: Side, results: Mapping[ColumnKey, Difference], names: Mapping[ColumnKey, str]
) -> list[list[str]]:
    lines = [["", "A", "B", "B - A", "95 % interval", "p"]]
    for column, result in results.items():
        means = []
        for side in (a, b):
            mean = 100 * torch.stack([bools[column].double().mean() for bools in side.sets]).mean().item()
            means.append(f"{mean:.1f}" + ("" if side.verdict(column) == "ok" else " ?"))
        interval = f"{result.low:+.1f} to {result.high:+.1f}"
        lines.append([names[column], *means, f"{result.value:+.1f}", interval, f"{result.p_value:.2g}"])
    return lines


def _left_out(a: Side, b: Side, shared: Sequence[ColumnKey], names: Mapping[ColumnKey, str]) -> list[str]:
    """Return a line for each column that is not compared, with the reason."""
    of_a, of_b = ([column for column in side.columns if column not in shared] for side in (a, b))
    lines, alone = [], {"A": [], "B": []}
    for column in dict.fromkeys([*of_a, *of_b]):
        like_a, like_b = ([each for each in side if each.attack == column.attack] for side in (of_a, of_b))
        if column in of_a and column in of_b:
            lacks = [letter for letter, side in (("A", a), ("B", b)) if column not in side.sets[0]]
            why = f"some runs of {' and '.join(lacks)} lack it" if lacks else "it counts each image many times"
            lines.append(f"{names[column]} is not compared: {why}")
        elif like_a and like_b:
            differences = _other_attack(like_a, like_b)
            found = f"{column.attack} is not compared, because A and B have different attacks: {differences}"
            lines += [found] * (found not in lines)
        else:
            alone["A" if column in of_a else "B"].append(names[column])
    return lines + [f"only {letter} has {', '.join(of_side)}" for letter, of_side in alone.items() if of_side]


def _other_attack(a: Sequence[ColumnKey], b: Sequence[ColumnKey]) -> str:
    """Return how attacks with the same name differ, in words."""
    parts = {"threat": lambda column: threat_text(column.threat) or "none", "how": lambda column: column.how}
    texts = {name: [sorted({text(column) for column in side}) for side in (a, b)] for name, text in parts.items()}
    return "; ".join(
        f"{name} {' and '.join(of_a)} of A, {' and '.join(of_b)} of B"
        for name, (of_a, of_b) in texts.items()
        if of_a != of_b
    )


def _legend(letter: str, side: Side) -> str:
    row, sets = side.rows[0], len(side.sets)
    students = sum(len(next(iter(bools.values()))) for bools in side.sets)
    counts = f"{counted(sets, 'set')}, {counted(students, 'student')}"
    loss = "" if row.loss == "cross_entropy" else f" {row.loss},"
    where = ", ".join(map(str, side.places))
    return f"{letter}: {row.method}, ipc {row.ipc}, {row.backbone},{loss} {counts}: {where}"


def _notes(a: Side, b: Side, shared: Sequence[ColumnKey]) -> list[str]:
    """Return lines with the meaning of the numbers and the population to which they generalise."""
    row, sets = a.rows[0], (len(a.sets), len(b.sets))
    lines = [
        f"accuracy in percent on {row.images} test images of {row.dataset}; interval and p: Welch's t test, "
        "two-sided, not corrected for the number of columns"
    ]
    tables = [[bools[shared[0]] for bools in side.sets] for side in (a, b)]
    unit = unit_of(*tables)
    same = a.names == b.names
    if unit == "sets":
        counted = f"{sets[0]}, equal in A and B, compared in pairs" if same else f"{sets[0]} and {sets[1]}"
        lines.append(f"unit: distilled sets ({counted}); the result generalises to other seeds of both")
        several = sets
    elif unit == "students":
        which = "this distilled set, trained both ways" if same else "these two distilled sets"
        lines.append(f"unit: students; the result generalises to other students of {which}, not to other seeds")
        if not same:
            lines.append("to compare methods, give several seeds: bash run.sh compare A... --against B...")
        several = (len(tables[0][0]), len(tables[1][0]))
    else:
        lines.append("unit: test images; the result is valid for these two networks, for no other student or seed")
        several = (1, 1)
    if min(several) == 1 < max(several):
        alone, other = ("A", "B") if several[0] == 1 else ("B", "A")
        lines.append(
            f"{alone} has a single {unit[:-1]}: "
            f"its variance is assumed equal to the variance between the {unit} of {other}"
        )
    for name in [column.attack for column in shared if column.attack.startswith(f"{UNBIASED}@")]:
        lines.append(f"rank methods by {name}: attacks on cross-entropy depend on the scale of the logits")
    return lines


def _side(letter: str, places: tuple[Path, ...]) -> Side:
    """Return a side; students of the same set in several runs are pooled.

    Raises:
        InputError: a folder has no finished run, or the runs differ in more than their seed.
    """
    folders = list(dict.fromkeys(folder for path in places for folder in _runs(path)))
    rows_of = {folder: find_rows([folder]) for folder in folders}
    first = folders[0]
    for folder in folders[1:]:
        if differs := differing_settings(_settings(first, rows_of[first]), _settings(folder, rows_of[folder])):
            raise InputError(
                f"the runs of {letter} differ in more than their seed: {', '.join(differs)} ({first}, {folder})"
            )
    runs: dict[str, list[dict[ColumnKey, Tensor]]] = {}
    for folder, rows in rows_of.items():
        runs.setdefault(rows[0].set, []).append(bools_of(folder, rows))
    every = [run for of_set in runs.values() for run in of_set]
    columns = [column for column in every[0] if all(column in run for run in every)]
    names = sorted(runs)  # equal sets then have equal positions in A and B
    sets = [{column: torch.cat([run[column] for run in runs[name]]) for column in columns} for name in names]
    return Side(places, [row for rows in rows_of.values() for row in rows], names, sets)


def _runs(path: Path) -> list[Path]:
    """Return the folders of the finished runs in a folder, which may itself be a run."""
    if (path / "results.jsonl").exists():
        return [path.resolve()]
    found = sorted(file.parent.resolve() for file in path.rglob("results.jsonl")) if path.is_dir() else []
    if not found:
        raise InputError(f"{path} is not the folder of a finished run: it has no results.jsonl")
    return found


def _settings(folder: Path, rows: list[Row]) -> dict[str, Any]:
    """Return the settings that must be equal for all runs of a side, by name.

    These are all settings except the seed, the set, and the numbers of students and of columns.
    """
    found = {name: getattr(rows[0], name) for name in SAME} | {"labels": rows[0].regime or "unknown"}
    experiment = settings_of(folder)
    evaluation = experiment.get("evaluation") or {}
    free = {"seed", "distilled", "evaluation", *found}
    found |= {name: value for name, value in experiment.items() if name not in free}
    of_columns = {"students", "attacks", "threat", "eps"}  # rows record the attack and the threat of each column
    return found | {name: value for name, value in evaluation.items() if name not in of_columns}


def _refuse_other_images(a: Side, b: Side) -> None:
    tests = [{(row.images, row.test) for row in side.rows} for side in (a, b)]
    if len(tests[0] | tests[1]) > 1:
        texts = [sorted({f"{row.images} of {row.dataset}" for row in side.rows}) for side in (a, b)]
        names = [" and ".join(each) for each in texts]
        raise InputError(f"the runs were evaluated on different images: A {names[0]}; B {names[1]}")
