"""The cells of a table: print them, run the missing ones with a progress bar, report those that failed."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from distill.app.cells import Cell, run_cells
from distill.app.flags import find_device
from distill.app.processes import MEMORY, free_memory
from distill.phrases import counted
from distill.runs.progress import progress
from distill.runs.threads import cores

__all__ = ["print_cells", "report_failures", "run_missing"]


def print_cells(cells: Sequence[Cell]) -> None:
    """Print the command and the state of each cell."""
    for cell in cells:
        state = "done" if cell.done else f"cannot run: {cell.trouble}" if cell.trouble else "to run"
        print(f"bash run.sh {shlex.join(cell.next or cell.words)}    # {state}")
    print(f"{counted(len(cells), 'cell')}, {sum(cell.done for cell in cells)} done", file=sys.stderr)


def run_missing(
    title: str, cells: Sequence[Cell], logs: Path, jobs: int | None, device: str, after: Callable[[], object]
) -> dict[Cell, str]:
    """Run the cells that are not done, with a progress bar.

    Args:
        title: of the progress bar.
        cells: all cells of this process, finished ones included.
        logs: folder of the log files.
        jobs: cells run at the same time; None for as many as the GPUs, or the cores and the memory, allow.
        device: name of the device; "auto" uses all GPUs in turn.
        after: called after each cell.

    Returns:
        the cells that failed or cannot run, each with the reason.

    Raises:
        InputError: the device does not work here.
    """
    failed = {cell: cell.trouble for cell in cells if cell.trouble}
    todo = [cell for cell in cells if not cell.done and not cell.trouble]
    finished = len(cells) - len(todo) - len(failed)
    if finished:
        print(f"{finished} of {counted(len(cells), 'cell')} already done", file=sys.stderr)
    devices = _devices(device)
    number = jobs or _most_jobs(devices, len(todo))
    if todo and number > 1 and jobs is None:
        print(f"{number} cells at a time share {_shared(devices)} (--jobs)", file=sys.stderr)
    with (
        progress(title, len(cells), finished + len(failed), unit="cell") as bar,
        contextlib.closing(run_cells(todo, logs, number, devices, bar.set_postfix_str)) as ended,
    ):
        for cell, trouble in ended:
            if trouble:
                failed[cell] = trouble
            bar.update()
            after()
    return failed


def report_failures(failed: Mapping[Cell, str], cells: Sequence[Cell], logs: Path) -> int:
    """Print the failed cells, those with the same reason in one line.

    Args:
        failed: cells with the reason.
        cells: all cells of this process.
        logs: folder of the log files.

    Returns:
        the exit code: 1 if a cell failed, else 0.
    """
    by_trouble: dict[str, list[Cell]] = {}
    for cell in filter(failed.__contains__, cells):
        by_trouble.setdefault(failed[cell], []).append(cell)
    for trouble, several in by_trouble.items():
        print(f"failed: {', '.join(cell.name for cell in several)}: {trouble}", file=sys.stderr)
    if failed:
        print(
            f"{len(failed)} of {counted(len(cells), 'cell')} failed (logs: {logs}); the same command tries them again",
            file=sys.stderr,
        )
    return 1 if failed else 0


def _devices(name: str) -> list[str]:
    """Return the devices over which cells are distributed in turn.

    Raises:
        InputError: the device does not work here.
    """
    device = find_device(name)
    if name == "auto" and device.type == "cuda":
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
