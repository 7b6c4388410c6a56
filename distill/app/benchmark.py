"""`bash run.sh benchmark`: reproduce the paper's tables. A cell is one run: a method, a data set, an ipc, a seed.

Cells are ordinary runs in ordinary folders. Each cell has a separate process and a log file. Finished cells are
skipped and interrupted cells resume. A cell that fails, or runs out of memory, does not stop the others. After each
cell the tables are rewritten from all finished cells.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from distill.app.benchmark_cells import BenchmarkCommand, planned_cells
from distill.app.cell_plan import part_of
from distill.app.cell_runs import print_cells, report_failures, run_missing
from distill.app.cells import Cell
from distill.app.flags import parse
from distill.app.report import NAME, write_group_report
from distill.errors import InputError
from distill.evaluation.row_files import find_rows
from distill.methods.method import Method
from distill.reports.comparison import LAYOUTS
from distill.runs.files import write_text
from distill.runs.provenance import computed_with

__all__ = ["run_benchmark"]


def run_benchmark(flags: list[str], methods: Mapping[str, Method]) -> int:
    """Run the missing cells, and write the tables.

    Args:
        flags: the command-line words after `benchmark`.
        methods: all methods, by name.

    Returns:
        the exit code: 0 if every cell is done, 1 if some failed.

    Raises:
        InputError: a name is unknown or a value out of range; then no cell was run.
    """
    command = parse(BenchmarkCommand, BenchmarkCommand(), flags, "bash run.sh benchmark")
    cells = planned_cells(command, methods)
    mine = cells if not command.cell else part_of(cells, command.cell)
    if command.dry_run:
        print_cells(mine)
        return 0
    folder = command.runs / "benchmark"
    logs = folder / "logs"
    failed = run_missing("benchmark", mine, logs, command.jobs, command.device, partial(_write, cells, folder))
    text, damaged = _write(cells, folder)
    failed |= {cell: trouble for cell, trouble in damaged.items() if cell in mine}
    print(text, end="")
    if text:
        done = [cell.folder for cell in cells if cell.done and cell not in damaged]
        write_group_report(done, "The benchmark", folder / NAME)
        print(f"saved in {folder}: {', '.join([*(f'table.{ending}' for ending in LAYOUTS), NAME])}", file=sys.stderr)
    return report_failures(failed, mine, logs)


def _write(cells: list[Cell], folder: Path) -> tuple[str, dict[Cell, str]]:
    """Write the tables of the finished cells.

    Returns:
        the tables as text, and the cells whose results cannot be read, with the reason.
    """
    rows, damaged = [], {}
    for cell in cells:
        if cell.done:
            try:
                rows += [replace(row, dataset=cell.data) for row in find_rows([cell.folder])]
            except InputError as error:
                damaged[cell] = str(error)
    if not rows:
        return "", damaged
    tables = {ending: layout(rows) for ending, layout in LAYOUTS.items()}
    line = computed_with(cell.folder for cell in cells if cell.done)
    tables["md"] += f"\n{line}\n" if line else ""
    for ending, table in tables.items():
        write_text(folder / f"table.{ending}", table)
    return tables["md"], damaged
