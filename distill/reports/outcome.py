"""The outcome of one run: its tables, written once, and what is printed of it, a line a column of the table."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import InputError
from distill.evaluation.intervals import accuracy_interval, wilson
from distill.reports.tables import TABLES, WHAT, aligned, find_rows, headings, milliseconds, read_rows, render, summary
from distill.runs.files import write_text
from distill.runs.own_files import fingerprint_of_folder, read_run_file

__all__ = ["bools_of", "finish", "show"]

HEADER = ("", "accuracy", "95 % interval", "advised", "distance", "seconds", "verdict")
"""of what is printed of a run"""


def finish(rows: list[dict[str, Any]], folder: Path) -> int:
    """Write the tables of a run and print it; table.csv is the last file, and says that the run is finished."""
    for name, form in TABLES.items():
        write_text(folder / name, render(rows, form))
    return show(folder)


def show(folder: Path) -> int:
    """Print a finished run."""
    rows = find_rows([folder])
    first = rows[0]
    students = 1 + max(row["student"] for row in rows)
    print(
        f"{first['method']} on {first['dataset']}, ipc {first['ipc']}, {first['backbone']}, {first['loss']}, "
        f"recipe {first['recipe']}, "
        f"seed {first['seed']}: {students} student{'s' * (students > 1)}, {first['images']} test images"
    )
    columns = _columns(rows, folder)
    if line := _no_better_than_chance(rows):
        print(f"warning: {line}", file=sys.stderr)
    print(aligned([list(line) for line in zip(*columns, strict=True)]), end="")
    teacher = folder / "teacher.jsonl"
    if teacher.exists():
        judged = read_rows(teacher)
        print("its teacher: " + ", ".join(f"{row['attack']} {row['accuracy']:.1f}" for row in judged))
    spread = f"mean ± standard deviation over {students} students; " if students > 1 else ""
    over = "students of this set and images" if students > 1 else "images"
    print(f"accuracy in percent, {spread}95 % interval: Wilson's, over {over}")
    notes = [f"a student was trained in {milliseconds(first['epoch_seconds'])} ms an epoch"]
    notes += ["distance: median of a minimum-norm attack"] * any(column[0] == "distance" for column in columns)
    notes += ["advised: the figure in doubt, under the attack that its verdict advises too"] * any(
        column[0] == "advised" for column in columns
    )
    print("; ".join(notes))
    print(f"saved in {folder}: {', '.join(sorted(path.name for path in folder.glob('[!.]*')))}")
    return 0


def _no_better_than_chance(rows: list[dict[str, Any]]) -> str:
    """Return what to say where students of a set are right no more often than its largest class is; "" elsewhere."""
    clean = [row for row in rows if row["attack"] == "clean"]
    chance = clean[0].get("chance") if clean else None
    right = sum(round(row["accuracy"] * row["images"] / 100) for row in clean)
    if chance is None or wilson(right, sum(row["images"] for row in clean))[0] > chance:
        return ""
    mean = sum(row["accuracy"] for row in clean) / len(clean)
    return (
        f"students are right on {mean:.1f} % of the images without an attack, and chance is {chance:.1f} %: the set "
        "taught them nothing. If it looks like noise (grid.png), the distillation diverged: take smaller learning rates"
    )


def bools_of(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return by column of a run who is classified right, (students, images), corruptions (students, kinds, images)."""
    students, whose = sorted({row["student"] for row in rows}), fingerprint_of_folder(folder)
    names, images = dict.fromkeys(row["attack"] for row in rows), rows[0]["images"]
    sheets = []
    for student in students:
        path = folder / "students" / f"{student}-correct.safetensors"
        sheets.append(read_run_file(path, whose)[0])
        if not all(name in sheets[-1] and sheets[-1][name].shape[-1] == images for name in names):
            raise InputError(f"{path} does not have the columns of results.jsonl, of {images} images each; delete both")
    return {name: torch.stack([sheet[name] for sheet in sheets]) for name in names}


def _columns(rows: list[dict[str, Any]], folder: Path) -> list[list[str]]:
    """Return the columns of what is printed, each with its heading; those that say nothing are left out."""
    bools, means = bools_of(folder, rows), summary(rows)
    names = headings(tuple(mean[field] for field in WHAT) for mean in means)
    table: dict[str, list[str]] = {name: [] for name in HEADER}
    for mean in means:
        mine = [row for row in rows if row["attack"] == mean["attack"]]
        found, interval = bools[mean["attack"]], ""  # corruptions have no interval: the same image many times
        if found.ndim == 2:
            low, high = accuracy_interval([found])
            interval = f"{low:.1f} to {high:.1f}"
        distances = [row["median_distance"] for row in mine if row["median_distance"] is not None]
        line = [
            names[tuple(mean[field] for field in WHAT)],
            f"{mean['mean']:.1f}" + ("" if mean["std"] is None else f" ± {mean['std']:.1f}"),
            interval,
            "" if mean["advised_mean"] is None else f"{mean['advised_mean']:.1f} by {mean['advised']}",
            f"{sum(distances) / len(distances):.3g}" if distances else "",
            f"{sum(row['seconds'] for row in mine):.1f}",
            verdict_of([row["verdict"] for row in mine]),
        ]
        for name, cell in zip(HEADER, line, strict=True):
            table[name].append(cell)
    return [[name, *cells] for name, cells in table.items() if any(cells)]


def verdict_of(verdicts: list[str]) -> str:
    """Return what is said of several students, as "ok" or "suspicious: reason (2 of 3 students)".

    >>> verdict_of(["ok", "suspicious: a", "suspicious: a"])
    'suspicious: a (2 of 3 students)'
    """
    doubts = Counter(verdict for verdict in verdicts if verdict != "ok")
    return "; ".join(f"{doubt} ({count} of {len(verdicts)} students)" for doubt, count in doubts.items()) or "ok"
