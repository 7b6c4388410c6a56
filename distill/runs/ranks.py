"""Several processes on one run, as `distill.runs.launch` or torchrun starts them; a single process is a group of one.

The main process (rank 0) writes the files of the run: configs, checkpoints, tables. The others compute.
"""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist

from distill.errors import InputError
from distill.runs.launch import ENDING, STORE

__all__ = [
    "barrier",
    "become_launcher",
    "check_processes",
    "claim_error_report",
    "exit_process",
    "failed_elsewhere",
    "is_main_process",
    "launched",
    "local_rank",
    "process_group",
    "rank",
    "reports_to_user",
    "requested_processes",
    "units_of_this_process",
    "world_size",
]

PATIENCE = timedelta(days=7)
"""how long a process waits for the others: while one attacks students, the rest wait"""


def launched() -> bool:
    """Return whether this process is one of several, with its number in the environment."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", rank())) if launched() else 0


def is_main_process() -> bool:
    """Return whether this process writes the files of the run."""
    return rank() == 0


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if dist.is_initialized():
        dist.barrier()


def units_of_this_process(units: list) -> list:
    """Return the units of independent work that this process does: unit rank(), and every world_size()-th after it.

    >>> units_of_this_process(["a", "b", "c"])
    ['a', 'b', 'c']
    """
    return units[rank() :: world_size()]


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the other processes for the block; does nothing for a single process.

    Args:
        device: of this process.
    """
    if not launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=_store(), rank=rank(), world_size=world_size(), timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for collectives that this process never joins


@cache
def _store() -> "dist.Store":  # pyright: ignore[reportPrivateImportUsage]  # public by torch's documentation
    """Return the store by which the processes find each other and exchange messages."""
    from torch.distributed import FileStore, PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

    store = FileStore(os.environ[STORE], world_size()) if STORE in os.environ else next(rendezvous("env://"))[0]
    store.set_timeout(PATIENCE)
    # torchrun's store outlives a restart: without a prefix of its own it would have the messages of dead processes.
    return PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _store_answers() -> bool:
    """Return whether the store answers without waiting for another process."""
    own = STORE in os.environ or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return launched() and (own or dist.is_initialized())


def claim_error_report() -> bool:
    """Tell the other processes that bad input ends the command.

    Returns:
        whether this process is the first to do so; that process prints the message.
    """
    try:
        return not _store_answers() or _store().add("refused", 1) == 1
    except RuntimeError:  # the store is gone
        return True


def failed_elsewhere() -> bool:
    """Return whether another process met bad input, so that an error in this process is only a consequence."""
    try:
        return _store_answers() and _store().check(["refused"])
    except RuntimeError:  # the store is gone
        return False


def reports_to_user() -> bool:
    """Return whether this process prints messages about the whole command: the main process, if `launch` does not."""
    return is_main_process() and STORE not in os.environ


def requested_processes() -> int:
    """Return the number of processes in the environment variable NPROC, 1 where the variable is not set.

    Raises:
        InputError: the variable is no whole number >= 1.
    """
    text = os.environ.get("NPROC", "1")
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise InputError(f"NPROC is {text[:40]}; it takes a whole number of processes >= 1")
    return int(text)


def check_processes(count: int, device: torch.device) -> None:
    """Refuse more processes than the machine has room for.

    Args:
        count: number of processes.
        device: of --device.

    Raises:
        InputError: the processes do not fit.
    """
    if count == 1:
        return
    if device.type == "cuda":
        if device.index is not None:
            raise InputError(f"NPROC is {count}, but --device is {device}: give --device cuda, of which each takes one")
        most, place = torch.cuda.device_count(), "GPUs, of which each process takes one"
    elif device.type == "cpu":
        cores = os.cpu_count() or 1
        most, place = max(8, 2 * cores), f"processes on {cores} cores"
    else:
        raise InputError(f"NPROC is {count}, but --device is {device}; several processes take cpu or cuda")
    if count > most:
        raise InputError(f"NPROC is {count}; this machine has place for at most {most} {place}")


def become_launcher(count: int, arguments: list[str]) -> None:
    """Replace this process by `distill.runs.launch`, which starts this command line in `count` processes."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until `launch` handles them
    words = ["-m", "distill.runs.launch", str(count), *arguments]
    os.execv(sys.executable, [sys.executable, *words])


def exit_process(code: int) -> None:
    """End this process; with an error, do not wait for collectives of other processes."""
    if code and launched():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)
    sys.exit(code)
