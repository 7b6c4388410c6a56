"""`bash run.sh benchmark`: reproduce the paper's tables. A cell is one run: a method, a data set, an ipc, a seed.

Cells are ordinary runs in ordinary folders. Each cell has a separate process and a log file. Finished cells are
skipped and interrupted cells resume. A cell that fails, or runs out of memory, does not stop the others. After each
cell the tables are rewritten from all finished cells.
"""

import contextlib
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from distill.app.benchmark_cells import BenchmarkCommand, part_of, planned_cells
from distill.app.cells import Cell, run_cells
from distill.app.flags import find_device, parse
from distill.app.processes import MEMORY, free_memory
from distill.errors import InputError
from distill.evaluation.row_files import find_rows
from distill.methods.method import Method
from distill.reports.comparison import LAYOUTS
from distill.runs.files import write_text
from distill.runs.progress import progress
from distill.runs.threads import cores

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
        for cell in mine:
            state = "done" if cell.done else f"cannot run: {cell.trouble}" if cell.trouble else "to run"
            print(f"bash run.sh {shlex.join(cell.next or cell.words)}    # {state}")
        print(f"{len(mine)} cells, {sum(cell.done for cell in mine)} done", file=sys.stderr)
        return 0
    folder = command.runs / "benchmark"
    failed = {cell: cell.trouble for cell in mine if cell.trouble}
    todo = [cell for cell in mine if not cell.done and not cell.trouble]
    finished = len(mine) - len(todo) - len(failed)
    if finished:
        print(f"{finished} of {len(mine)} cells are already done", file=sys.stderr)
    devices = _devices(command)
    jobs = command.jobs or _most_jobs(devices, len(todo))
    if todo and jobs > 1 and command.jobs is None:
        print(f"{jobs} cells at a time share {_shared(devices)} (--jobs)", file=sys.stderr)
    with (
        progress("benchmark", len(mine), finished + len(failed), unit="cell") as bar,
        contextlib.closing(run_cells(todo, folder / "logs", jobs, devices, bar.set_postfix_str)) as ended,
    ):
        for cell, trouble in ended:
            if trouble:
                failed[cell] = trouble
            bar.update()
            _write(cells, folder)
    text, damaged = _write(cells, folder)
    failed |= {cell: trouble for cell, trouble in damaged.items() if cell in mine}
    print(text, end="")
    if text:
        print(f"saved in {folder}: {', '.join(f'table.{ending}' for ending in LAYOUTS)}", file=sys.stderr)
    by_trouble: dict[str, list[Cell]] = {}
    for cell in filter(failed.__contains__, mine):
        by_trouble.setdefault(failed[cell], []).append(cell)
    for trouble, several in by_trouble.items():
        print(f"failed: {', '.join(cell.name for cell in several)}: {trouble}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {len(mine)} cells failed (logs: {folder / 'logs'}); the same command tries them again",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _devices(command: BenchmarkCommand) -> list[str]:
    """Return the devices over which cells are distributed in turn.

    Raises:
        InputError: the device does not work here.
    """
    device = find_device(command.device)
    if command.device == "auto" and device.type == "cuda":
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(device)]


def _most_jobs(devices: list[str], cells: int) -> int:
    """Return how many cells run at the same time by default.

    Args:
        devices: of the cells.
        cells: that are to be run.
    """
    places = min(cores(), max(1, free_memory() // MEMORY)) if devices == ["cpu"] else len(devices)
    return max(1, min(places, cells))


def _shared(devices: list[str]) -> str:
    """Return what the cells share, for a message."""
    return f"{cores()} cores and {free_memory() / 2**30:.0f} GiB of free memory" if devices == ["cpu"] else "the GPUs"


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
    for ending, layout in LAYOUTS.items():
        write_text(folder / f"table.{ending}", layout(rows))
    return LAYOUTS["md"](rows), damaged
