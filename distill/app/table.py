"""`bash run.sh table`: print all finished runs as one table."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from distill.app.flags import parse, picture_named
from distill.evaluation.row_files import find_rows
from distill.reports.indices import indices
from distill.reports.rivals import rival_notes
from distill.reports.table_figure import draw_table
from distill.reports.tables import render

__all__ = ["run_table"]


@dataclass(frozen=True)
class TableCommand:
    """Print all finished runs as one table."""

    places: tyro.conf.Positional[tuple[Path, ...]] = (Path("runs"),)
    """folders of runs"""
    format: Literal["text", "markdown", "csv", "latex"] = "text"
    """csv has a line per seed and attack; the other formats average over seeds"""
    plot: Path | None = None
    """figure to write, FILE.png and FILE.svg: accuracy against eps where attacks have several radii, else a marker for
    each column; of one data set"""
    indices: bool = False
    """add the composite indices RR, AE, CREI, DR, and IOR if there is a run of random images under the same labels
    (docs/robustness.md)"""


def run_table(flags: list[str]) -> int:
    """Print all finished runs.

    Returns:
        the exit code.

    Raises:
        InputError: there is no finished run, or --plot names no picture or has several data sets.
    """
    command = parse(TableCommand, TableCommand(), flags, "bash run.sh table")
    plot = picture_named(command.plot)
    rows = find_rows(command.places)
    print(render([*rows, *(indices(rows) if command.indices else [])], command.format), end="")
    if command.indices:
        notes = sys.stdout if command.format in ("text", "markdown") else sys.stderr
        print("".join(f"\n{note}" for note in rival_notes(rows)).removeprefix("\n" * (notes is sys.stderr)), file=notes)
    if plot is not None:
        draw_table(plot, rows)
    return 0
