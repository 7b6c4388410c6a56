"""Stored results in docs/results, Markdown tables of them, and what finished runs say of themselves."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.runs.scalars import METRICS, read_scalars

__all__ = ["DOCS", "RESULTS", "experiment_of", "flag_of", "markdown", "read", "seconds_of"]

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "results"


def read(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with open(path, encoding="utf-8", newline="") as file:
        return [*csv.DictReader(file)]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table; the first line is its heading.

    >>> print(markdown([["a", "b"], ["1", "2"]]), end="")
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    return "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def experiment_of(folder: Path) -> dict[str, Any]:
    """Return experiment.json of a run."""
    return json.loads((folder / "experiment.json").read_text(encoding="utf-8"))


def flag_of(stored: dict[str, Any], flag: str) -> str:
    """Return the value that the command of a run has for a flag, "" where it leaves the recipe's.

    >>> stored = {"made_by": {"command": ["main", "guard_dc", "cifar10", "--real-loss", "guard:weight=3"]}}
    >>> flag_of(stored, "--real-loss"), flag_of(stored, "--batch-real")
    ('guard:weight=3', '')
    """
    words = stored["made_by"]["command"]
    return words[words.index(flag) + 1] if flag in words else ""


def seconds_of(folder: Path) -> list[float]:
    """Return the time of each iteration of a run, none where the run has no iterations."""
    return [step["seconds"] for step in read_scalars(folder / METRICS) if "seconds" in step]
