"""The outcome of one run: its tables as files, and its printed table, which has a line per column."""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import InputError
from distill.evaluation.intervals import accuracy_interval, wilson
from distill.evaluation.results import absent_columns
from distill.evaluation.row_files import find_rows, read_rows
from distill.evaluation.rows import ColumnKey, Row, RunDescription
from distill.experiment import Evaluation
from distill.phrases import counted
from distill.reports.field_mean import LEGEND, field_means
from distill.reports.summary import headings, summary
from distill.reports.tables import TABLES, aligned, render
from distill.runs.files import write_text
from distill.runs.foreign import read_text
from distill.runs.own_files import fingerprint_of_folder, read_run_file
from distill.runs.progress import human

__all__ = ["bools_of", "missing_columns", "show", "verdict_of", "write_tables"]

HEADER = ("", "accuracy", "95 % interval", "advised", "distance", "seconds", "verdict")
"""headings of the printed table of a run"""
EXPLAINED = {
    "advised": "advised: accuracy under this attack and the attack that its verdict advises.",
    "distance": "distance: median distance of the nearest adversarial image that a minimum-norm attack found.",
}
"""by column, its line of the legend"""


def missing_columns(
    folder: Path, evaluation: Evaluation, channels: int, size: int, run: RunDescription | None = None
) -> list[str] | None:
    """Return the columns that a run does not have yet, by name; None where its results are to be made.

    Results are made anew, from the students, where a file of them is damaged, of another run, or contradicts another.

    Args:
        folder: of the run.
        evaluation: with the requested columns and the number of students.
        channels: of the images.
        size: height and width in pixels.
        run: what every row of the run has; None to compare nothing.
    """
    return absent_columns(folder, evaluation, channels, size, run) if _has_tables(folder) else None


def _has_tables(folder: Path) -> bool:
    """Return whether the tables of a run are those of its results."""
    try:
        rows = find_rows([folder])
        return all(read_text(folder / name) == render(rows, form) for name, form in TABLES.items())
    except (OSError, ValueError):  # no results, no text, or a student in one column twice
        return False


def write_tables(rows: list[Row], folder: Path) -> None:
    """Write the tables of a run; table.csv is the last file of its results, and says that the run is finished."""
    for name, form in TABLES.items():
        write_text(folder / name, render(rows, form))


def show(folder: Path) -> int:
    """Print a finished run."""
    rows = find_rows([folder])
    first = rows[0]
    students = 1 + max(row.student or 0 for row in rows)
    print(
        f"{first.method} on {first.dataset}, ipc {first.ipc}, {first.backbone}, {first.loss}, recipe {first.recipe}, "
        f"seed {first.seed}: {counted(students, 'student')}, {first.images} test images"
    )
    if line := _no_better_than_chance(rows):
        print(f"warning: {line}", file=sys.stderr)
    columns = _columns(rows, folder)
    print(aligned([list(line) for line in zip(*columns, strict=True)]), end="")
    teacher = folder / "teacher.jsonl"
    if teacher.exists():
        accuracies = ", ".join(f"{row.attack} {row.accuracy:.1f}" for row in read_rows(teacher))
        print(f"teacher: {accuracies}")
    print(_legend(students, first.epoch_seconds, {column[0] for column in columns}))
    if field_means(rows):
        print(LEGEND)
    print(f"saved in {folder}: {', '.join(sorted(path.name for path in folder.glob('[!.]*')))}")
    return 0


def _legend(students: int, epoch_seconds: float, columns: set[str]) -> str:
    """Return what the numbers of a printed run are; columns that it does not have are not explained."""
    spread, over = (f", mean ± SD over {students} students", "students, images") if students > 1 else ("", "images")
    lines = [f"Accuracy in %{spread}. 95 % interval: Wilson ({over}). Training: {human(epoch_seconds)} per epoch."]
    return "\n".join(lines + [line for column, line in EXPLAINED.items() if column in columns])


def _no_better_than_chance(rows: list[Row]) -> str:
    """Return a warning where students are right no more often than the largest class is frequent; "" elsewhere."""
    clean = [row for row in rows if row.attack == "clean"]
    chance = clean[0].chance if clean else None
    right = sum(round(row.accuracy * row.images / 100) for row in clean)
    if chance is None or wilson(right, sum(row.images for row in clean))[0] > chance:
        return ""
    mean = sum(row.accuracy for row in clean) / len(clean)
    return (
        f"students are right on {mean:.1f} % of the images without an attack, and chance is {chance:.1f} %: the set "
        "taught them nothing. If it looks like noise (grid.png), the distillation diverged: take smaller learning rates"
    )


def bools_of(folder: Path, rows: list[Row]) -> dict[ColumnKey, Tensor]:
    """Return by column which images are classified right, (students, images), corruptions (students, kinds, images).

    Args:
        folder: of a finished run.
        rows: of the run.

    Raises:
        InputError: a file of a student is damaged, of another run, or lacks a column.
    """
    students, fingerprint = sorted({row.student or 0 for row in rows}), fingerprint_of_folder(folder)
    columns, images = dict.fromkeys(row.column for row in rows), rows[0].images
    tables = []
    for student in students:
        path = folder / "students" / f"{student}-correct.safetensors"
        table = read_run_file(path, fingerprint)[0]
        if not all(c.attack in table and table[c.attack].shape[-1] == images for c in columns):
            raise InputError(f"{path} does not have the columns of results.jsonl, of {images} images each; delete both")
        tables.append(table)
    return {column: torch.stack([table[column.attack] for table in tables]) for column in columns}


def _columns(rows: list[Row], folder: Path) -> list[list[str]]:
    """Return the columns of the printed table, each with its heading; empty columns are left out."""
    bools = bools_of(folder, rows)
    rows = [*rows, *field_means(rows)]
    means = summary(rows)
    names = headings(mean.column for mean in means)
    table: dict[str, list[str]] = {name: [] for name in HEADER}
    for mean in means:
        mine = [row for row in rows if row.column == mean.column]
        found, interval = bools.get(mean.column), ""  # corruptions have no interval: the same image many times
        if found is not None and found.ndim == 2:
            low, high = accuracy_interval([found])
            interval = f"{low:.1f} to {high:.1f}"
        distances = [row.median_distance for row in mine if row.median_distance is not None]
        line = [
            names[mean.column],
            f"{mean.mean:.1f}" + ("" if mean.std is None else f" ± {mean.std:.1f}"),
            interval,
            "" if mean.advised_mean is None else f"{mean.advised_mean:.1f} by {mean.advised}",
            f"{sum(distances) / len(distances):.3g}" if distances else "",
            "" if found is None else f"{sum(row.seconds for row in mine):.1f}",
            verdict_of([row.verdict for row in mine]),
        ]
        for name, cell in zip(HEADER, line, strict=True):
            table[name].append(cell)
    return [[name, *cells] for name, cells in table.items() if any(cells)]


def verdict_of(verdicts: list[str]) -> str:
    """Return the verdict over several students, as "ok" or "suspicious: reason (2 of 3 students)".

    >>> verdict_of(["ok", "suspicious: a", "suspicious: a"])
    'suspicious: a (2 of 3 students)'
    """
    doubts = Counter(verdict for verdict in verdicts if verdict != "ok")
    return "; ".join(f"{doubt} ({count} of {len(verdicts)} students)" for doubt, count in doubts.items()) or "ok"
