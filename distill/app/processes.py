"""How many processes a command uses, and how many threads each."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from distill.app.exit_codes import exit_code_of
from distill.app.start import RunOptions
from distill.data import ImageSet
from distill.data.threads import cores
from distill.runs.ranks import (
    alone,
    check_processes,
    in_processes,
    launched,
    process_group,
    requested_processes,
    world_size,
)

__all__ = ["by_itself", "number_of_processes", "one_thread", "work_together"]

MEMORY = 2**30
"""bytes that a process takes at most, beside the data, which all processes share (`bash run.sh bench memory`)"""


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
    if launched():
        return world_size(), True
    requested = options.processes or requested_processes()
    if requested is not None:
        check_processes(requested, device)
        return requested, True
    if device.type == "cuda" and device.index is None:
        return max(1, torch.cuda.device_count()), False
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return 1, False
    return max(1, min(cores() // _threads(), free_memory() // MEMORY)), False


def free_memory() -> int:
    """Return the bytes of memory that the machine, or the container, has free."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):  # with what the system gives back when it is needed
                free = 1024 * int(line.split()[1])
    return free


def one_thread(device: torch.device) -> None:
    """On a CPU, give this process one thread, or as many as OMP_NUM_THREADS has.

    Processes use the cores better than threads do: on two cores a step of ConvNet-3 at 32 px takes 1.7 times as long
    with one thread, and two processes do two such steps in that time (docs/cost.md). Results depend on the number of
    threads in their last bits, hence the number does not depend on the number of processes.
    """
    if device.type == "cpu":
        torch.set_num_threads(_threads())


@contextmanager
def by_itself(images: ImageSet, device: torch.device) -> Iterator[None]:
    """Let this process do work that processes do not divide: without the others, and on a CPU with all cores.

    With images of 16 px or less one thread is faster: splitting such small layers costs more than it saves.
    """
    with alone():
        if device.type == "cpu" and images.image_shape[1] > 16 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cores())
        try:
            yield
        finally:
            one_thread(device)


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


def _threads() -> int:
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() and int(text) > 0 else 1
