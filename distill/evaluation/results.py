"""results.jsonl of a run: a row for each student and column, and which columns are there already."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.errors import InputError
from distill.evaluation.columns import Column, columns
from distill.evaluation.intervals import wilson
from distill.evaluation.judge import Sheet, members_of
from distill.experiment import Evaluation
from distill.reports.tables import TABLES, find_rows, read_rows, render
from distill.runs.foreign import read_text

__all__ = ["missing", "row_of", "with_earlier"]


def missing(
    folder: Path, evaluation: Evaluation, channels: int, size: int, whose: Mapping[str, Any] | None = None
) -> list[str] | None:
    """Return the columns that a run does not have yet, by name; None where its results are to be made.

    They are made anew, from the students, where a file of them is damaged, of another run, or not what the others say.

    Args:
        folder: of the run.
        evaluation: what is requested.
        channels: of the images.
        size: height and width in pixels.
        whose: what every row of the run has, such as its seed.
    """
    rows = _rows_of(folder)
    if not rows or not _whole(folder, rows, evaluation.students, whose or {}):
        return None
    there = {(row["attack"], row["how"]) for row in rows}
    worst = {name for name, _ in there if name.startswith("worst@")}
    found = columns(evaluation, channels, size)
    absent = [c.name for c in found if (c.name, c.how) not in there and c.name not in worst]
    return absent


def _whole(folder: Path, rows: list[dict[str, Any]], students: int, whose: Mapping[str, Any]) -> bool:
    """Return whether the results of a run have every student once in every column, and its tables say the same."""
    try:
        if (folder / "teacher.jsonl").exists():
            read_rows(folder / "teacher.jsonl")
        if any(read_text(folder / name) != render(rows, form) for name, form in TABLES.items()):
            return False
    except (OSError, ValueError):  # a student is there twice; no text
        return False
    if not all((folder / "students" / f"{student}-correct.safetensors").exists() for student in range(students)):
        return False
    found = {(row["student"], row["attack"]) for row in rows}
    complete = {(student, row["attack"]) for student in range(students) for row in rows}
    return complete <= found and all(row.get(name) == value for row in rows for name, value in whose.items())


def _rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of results.jsonl; none where it is not there or damaged, and is to be made anew."""
    try:
        return find_rows([folder])
    except InputError:
        return []


def with_earlier(folder: Path, evaluation: Evaluation, channels: int, size: int) -> list[Column]:
    """Return the columns that the run has, then the requested ones."""
    earlier = [row["attack"] for row in _rows_of(folder) if row["attack"] != "clean"]
    requested = columns(evaluation, channels, size)
    names = list(dict.fromkeys([*earlier, *(column.name for column in requested)]))
    try:
        return columns(replace(evaluation, attacks=",".join(names), eps=""), channels, size)
    except InputError:  # of an earlier version, or damaged
        return requested


def row_of(
    column: Column | None,
    asked: list[Column],
    sheet: Sheet,
    verdict: str,
    advised: tuple[str, Tensor] | None,
    epoch_seconds: float,
) -> dict[str, Any]:
    """Return the row of results.jsonl of one student in one column.

    Args:
        column: None for clean accuracy.
        asked: all columns.
        sheet: the student's.
        verdict: "ok", or why the figure is in doubt.
        advised: the name of the attack that follows the advice of the verdict, and who withstands it too, (images,).
        epoch_seconds: of the student's training.
    """
    name, base, how = (column.name, column.base, column.how) if column else ("clean", "clean", "")
    if column and base == "worst":
        how = f"of {', '.join(sorted(member.name for member in members_of(column, asked)))}"
    bools = sheet.bools[name]  # of corruptions a row for each kind and severity, hence without an interval
    share, images = bools.double().mean().item(), bools.shape[-1]
    low, high = wilson(int(bools.sum()), images) if bools.ndim == 1 else (None, None)
    return {
        "attack": name,
        "threat": column.ball if column else "",
        "how": how,
        "accuracy": 100 * share,
        "low": low,
        "high": high,
        "images": images,
        "median_distance": sheet.median_distance(base),
        "seconds": sum(sheet.seconds.get(key, 0.0) for key in {name, base}),
        "epoch_seconds": epoch_seconds,
        "verdict": verdict,
        "advised": advised[0] if advised else "",
        "advised_accuracy": 100 * advised[1].double().mean().item() if advised else None,
    }
