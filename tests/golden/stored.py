"""Stored results in docs/results, and Markdown tables of them."""

import csv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["DOCS", "RESULTS", "markdown", "read"]

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
