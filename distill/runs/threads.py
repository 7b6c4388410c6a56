"""Cores and threads of a process on a CPU.

Processes use the cores better than threads do: on two cores a step of ConvNet-3 at 32 px takes 1.2 to 1.7 times as long
with one thread as with two, and two processes do two such steps in that time (docs/cost.md). Results depend on the
number of threads in their last bits, hence the number of threads does not depend on the number of processes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from distill.runs.ranks import alone, world_size

__all__ = ["CGROUP", "by_itself", "cores", "one_thread", "requested_threads"]

CGROUP = Path("/sys/fs/cgroup")
"""where Linux tells a container its limits"""
SMALL = 16
"""side of images in pixels up to which one thread is faster than several: such small layers are not worth splitting"""


def cores() -> int:
    """Return the number of cores for this process, at least 1: usable cores divided by this machine's processes.

    Usable are those that the process may run on, in a container as many as its limit allows.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # ValueError: "max", no limit
        quota, period = (CGROUP / "cpu.max").read_text().split()
        usable = min(usable, max(1, int(quota) // int(period)))
    return max(1, usable // (int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1))


def requested_threads() -> int:
    """Return the number of threads in the environment variable OMP_NUM_THREADS; 0 without one."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdigit() else 0


def one_thread(device: torch.device) -> None:
    """On a CPU, give this process one thread, or as many as OMP_NUM_THREADS has."""
    if device.type == "cpu":
        torch.set_num_threads(requested_threads() or 1)


@contextmanager
def by_itself(size: int, device: torch.device) -> Iterator[None]:
    """Let this process do work that processes do not divide: without the others, and on a CPU with all cores.

    Args:
        size: side of the images in pixels.
        device: of the work.
    """
    with alone():
        if device.type == "cpu" and size > SMALL and not requested_threads():
            torch.set_num_threads(cores())
        try:
            yield
        finally:
            one_thread(device)
