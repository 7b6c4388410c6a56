"""results.jsonl of a run: the row of a student in a column, and which columns are there already."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from distill.errors import InputError
from distill.evaluation.column_kinds import Column, WorstColumn
from distill.evaluation.columns import columns
from distill.evaluation.intervals import wilson
from distill.evaluation.row_files import find_rows, read_rows
from distill.evaluation.rows import Row, RunDescription, StudentDescription
from distill.evaluation.student_results import StudentResults
from distill.experiment import Evaluation

__all__ = ["absent_columns", "all_columns", "row_of"]


def absent_columns(
    folder: Path, evaluation: Evaluation, channels: int, size: int, run: RunDescription | None = None
) -> list[str] | None:
    """Return the columns that a run does not have yet, by name; None where all its results are to be made.

    Results are made anew, from the students, where a file of them is damaged, lacks a student, or is of another run.

    Args:
        folder: of the run.
        evaluation: with the requested columns and the number of students.
        channels: of the images.
        size: height and width in pixels.
        run: what every row of the run has; None to compare nothing.
    """
    rows = _rows_of(folder)
    if not rows or not _whole(folder, rows, evaluation.students, run):
        return None
    there = {(row.attack, row.how) for row in rows}
    worst = {name for name, _ in there if name.startswith("worst@")}
    requested = columns(evaluation, channels, size)
    return [c.name for c in requested if (c.name, c.how) not in there and c.name not in worst]


def _whole(folder: Path, rows: list[Row], students: int, run: RunDescription | None) -> bool:
    """Return whether the results of a run have every student in every column, and are of this run."""
    try:
        if (folder / "teacher.jsonl").exists():
            read_rows(folder / "teacher.jsonl")
    except InputError:
        return False
    if not all((folder / "students" / f"{student}-correct.safetensors").exists() for student in range(students)):
        return False
    found = {(row.student, row.attack) for row in rows}
    complete = {(student, row.attack) for student in range(students) for row in rows}
    return complete <= found and (run is None or all(run.describes(row) for row in rows))


def _rows_of(folder: Path) -> list[Row]:
    """Return the rows of results.jsonl; none where the file is absent or damaged: then it is made anew."""
    try:
        return find_rows([folder])
    except InputError:
        return []


def all_columns(folder: Path, evaluation: Evaluation, channels: int, size: int) -> list[Column]:
    """Return the columns that the run has from earlier evaluations, then the requested ones."""
    earlier = [row.attack for row in _rows_of(folder) if row.attack != "clean"]
    requested = columns(evaluation, channels, size)
    names = list(dict.fromkeys([*earlier, *(column.name for column in requested)]))
    try:
        return columns(replace(evaluation, attacks=",".join(names), eps=""), channels, size)
    except InputError:  # rows of an earlier version, or damaged
        return requested


def row_of(
    column: Column | None,
    all_columns: Sequence[Column],
    results: StudentResults,
    verdict: str,
    advised: tuple[str, Tensor] | None,
    epoch_seconds: float,
    student: StudentDescription,
) -> Row:
    """Return the row of one student in one column.

    Args:
        column: None for clean accuracy.
        all_columns: of the table.
        results: of the student.
        verdict: "ok", or why the accuracy is in doubt.
        advised: the name of the attack that the verdict advises, and which images withstand it too, (images,).
        epoch_seconds: of the student's training.
        student: what all rows of the student share.
    """
    name, base, how = (column.name, column.base, column.how) if column else ("clean", "clean", "")
    if isinstance(column, WorstColumn):
        how = f"of {', '.join(sorted(member.name for member in column.members(all_columns)))}"
    bools = results.bools[name]  # of corruptions a row for each kind and severity, hence without an interval
    share, images = bools.double().mean().item(), bools.shape[-1]
    low, high = wilson(int(bools.sum()), images) if bools.ndim == 1 else (None, None)
    return Row(
        **vars(student),
        attack=name,
        threat=column.limit if column else None,
        how=how,
        accuracy=100 * share,
        low=low,
        high=high,
        images=images,
        median_distance=results.median_distance(base),
        seconds=sum(results.seconds.get(key, 0.0) for key in {name, base}),
        epoch_seconds=epoch_seconds,
        verdict=verdict,
        advised=advised[0] if advised else "",
        advised_accuracy=100 * advised[1].double().mean().item() if advised else None,
    )
