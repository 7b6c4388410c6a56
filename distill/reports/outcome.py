"""The outcome of one run: its tables, written once, and what is printed of it, a line a column of the table."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.files import read_tensors, write_text
from distill.reports.intervals import accuracy_interval
from distill.reports.tables import aligned, find_rows, milliseconds, render, summary

__all__ = ["bools_of", "finish", "show"]


def finish(rows: list[dict[str, Any]], folder: Path) -> int:
    """Write the tables of a run and print it; table.csv is the last file, and says that the run is finished."""
    write_text(folder / "table.md", render(rows, "markdown"))
    write_text(folder / "table.csv", render(rows, "csv"))
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
    print(aligned([["", "accuracy", "95 % interval", "distance", "seconds", "verdict"], *_lines(rows, folder)]), end="")
    teacher = folder / "teacher.jsonl"
    if teacher.exists():
        judged = [json.loads(line) for line in teacher.read_text(encoding="utf-8").splitlines()]
        print("its teacher: " + ", ".join(f"{row['attack']} {row['accuracy']:.1f}" for row in judged))
    interval = "Wilson's, over students and images of this set" if students > 1 else "Wilson's, over images"
    print(
        "accuracy in percent, mean ± standard deviation over the students, each trained in "
        f"{milliseconds(first['epoch_seconds'])} ms an epoch; interval: {interval}; distance: "
        "median of a minimum-norm attack; columns: `bash run.sh list`"
    )
    print(f"saved in {folder}: {', '.join(sorted(path.name for path in folder.glob('[!.]*')))}")
    return 0


def bools_of(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return by column of a run who is classified right, (students, images), corruptions (students, kinds, images)."""
    students = sorted({row["student"] for row in rows})
    sheets = [read_tensors(folder / "students" / f"{student}-correct.safetensors")[0] for student in students]
    names = dict.fromkeys(row["attack"] for row in rows)
    return {name: torch.stack([sheet[name] for sheet in sheets]) for name in names}


def _lines(rows: list[dict[str, Any]], folder: Path) -> list[list[str]]:
    bools = bools_of(folder, rows)
    lines = []
    for mean in summary(rows):
        name, mine = mean["attack"], [row for row in rows if row["attack"] == mean["attack"]]
        found, interval = bools[name], ""  # corruptions have no interval: the same image many times
        if found.ndim == 2:
            low, high = accuracy_interval([found])
            interval = f"{low:.1f} to {high:.1f}"
        distances = [row["median_distance"] for row in mine if row["median_distance"] is not None]
        lines.append(
            [
                name,
                f"{mean['mean']:.1f}" + ("" if mean["std"] is None else f" ± {mean['std']:.1f}"),
                interval,
                f"{sum(distances) / len(distances):.3g}" if distances else "",
                f"{sum(row['seconds'] for row in mine):.1f}",
                verdict_of([row["verdict"] for row in mine]),
            ]
        )
    return lines


def verdict_of(verdicts: list[str]) -> str:
    """Return what is said of several students, as "ok" or "suspicious: reason (2 of 3 students)".

    >>> verdict_of(["ok", "suspicious: a", "suspicious: a"])
    'suspicious: a (2 of 3 students)'
    """
    doubts = Counter(verdict for verdict in verdicts if verdict != "ok")
    return "; ".join(f"{doubt} ({count} of {len(verdicts)} students)" for doubt, count in doubts.items()) or "ok"
