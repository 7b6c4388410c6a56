"""Several processes on one run, as torchrun starts them; a single process is the first of one.

The first process writes what all share: configs, checkpoints, tables. The others compute.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from distill.errors import InputError

__all__ = ["asked", "barrier", "first", "joined", "launched", "local", "rank", "share", "start", "world"]

PATIENCE = timedelta(days=7)
"""how long a process waits for the others: while one attacks students, the rest wait"""


def launched() -> bool:
    """Return whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world() -> int:
    """Return how many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if launched() else 0


def first() -> bool:
    """Return whether this process writes what all share."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def share(units: list) -> list:
    """Return this process's part of independent units of work: every world-th, from its own number on.

    >>> share(["a", "b", "c"])
    ['a', 'b', 'c']
    """
    return units[rank() :: world()]


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the other processes for the block; a process that torchrun did not start is alone.

    Args:
        device: of this process.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    store, number, count = next(dist.rendezvous("env://"))
    # torchrun's store outlives a restart: without a prefix of its own it would call the processes that died.
    store = dist.PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def asked() -> int:
    """Return how many processes the environment variable NPROC asks for, 1 where it is not set.

    Raises:
        InputError: it is no whole number >= 1.
    """
    text = os.environ.get("NPROC", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"NPROC is {text}; it takes a whole number of processes >= 1")
    return int(text)


def start(count: int, arguments: list[str]) -> None:
    """Become torchrun, which starts this command line in so many processes, and all of them again where one dies."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--max-restarts=3"]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *launcher, "-m", "distill", *arguments])
