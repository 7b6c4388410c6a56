"""How many processes a command uses, and their start."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from distill.app.exit_codes import exit_code_of
from distill.app.start import RunOptions
from distill.runs.ranks import (
    check_processes,
    in_processes,
    launched,
    process_group,
    requested_processes,
    started_by_user,
    world_size,
)
from distill.runs.threads import CGROUP, cores, requested_threads

__all__ = ["MEMORY", "free_memory", "number_of_processes", "work_together"]

MEMORY = 2**30
"""bytes that a process takes at most, beside the data, which all processes share (`bash run.sh bench evaluation`)"""


def number_of_processes(options: RunOptions, device: torch.device) -> tuple[int, bool]:
    """Return how many processes work on the command, and whether the user gave the number.

    Args:
        options: with --processes, which comes before the environment variable NPROC. Without either: one process for
            each GPU; on a CPU one for each core, or for as many threads as OMP_NUM_THREADS has, as far as the free
            memory goes.
        device: of --device.

    Raises:
        InputError: the machine has no place for so many.
    """
    requested = options.processes or requested_processes()
    if launched():
        return world_size(), started_by_user() or requested is not None
    if requested is not None:
        check_processes(requested, device)
        return requested, True
    if device.type == "cuda" and device.index is None:
        return max(1, torch.cuda.device_count()), False
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return 1, False
    return max(1, min(cores() // (requested_threads() or 1), free_memory() // MEMORY)), False


def free_memory() -> int:
    """Return the bytes of memory that are free, in a container within its limit; half of all where nothing tells."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    with suppress(OSError, ValueError):
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])  # with what the system gives back when it is needed
    with suppress(OSError, ValueError):  # ValueError: "max", no limit
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        free = min(free, max(0, limit - used))
    return free


def work_together(count: int, device: torch.device, words: list[str], work: Callable[[], int]) -> int:
    """Do the work of a command in several processes.

    Args:
        count: number of processes.
        device: of --device.
        words: the command line, with which further processes are started where they are no forks of this one.
        work: the work of one process.

    Returns:
        the exit code.
    """

    def of_one() -> int:
        with process_group(device):
            return work()

    # a single process raises to its caller, which makes the exit code of the command
    several = count > 1 and not launched()
    return in_processes(count, device, words, (lambda: exit_code_of(of_one)) if several else of_one)
