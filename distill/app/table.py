"""`bash run.sh table`: every finished run as one table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from distill.app.flags import parse
from distill.reports.indices import indices
from distill.reports.tables import find_rows, render

__all__ = ["run_table"]


@dataclass(frozen=True)
class TableCommand:
    """Print every finished run as one table."""

    places: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """folders of runs"""
    format: Literal["text", "markdown", "csv", "latex"] = "text"
    """csv has a line per seed and attack, the others put seeds together"""
    indices: bool = False
    """add the field's composite indices: RR, AE, CREI; IOR where `random` was run (docs/robustness.md)"""


def run_table(flags: list[str]) -> int:
    """Print all finished runs."""
    asked = parse(TableCommand, TableCommand(), flags, "bash run.sh table")
    rows = find_rows(asked.places)
    print(render([*rows, *(indices(rows) if asked.indices else [])], asked.format), end="")
    return 0
