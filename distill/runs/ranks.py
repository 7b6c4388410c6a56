"""Several processes on one run, as `distill.runs.launch` or torchrun starts them; a single process is a group of one.

The main process (rank 0) writes the files of the run: configs, checkpoints, tables. The others compute. How work is
divided among them: `distill.runs.divided`, and `distill.runs.tasks` for independent work.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist

from distill.errors import InputError
from distill.runs.launch import ENDING, STORE, fork

__all__ = [
    "alone",
    "barrier",
    "check_processes",
    "claim_error_report",
    "exit_process",
    "failed_elsewhere",
    "in_processes",
    "is_main_process",
    "launched",
    "local_rank",
    "process_group",
    "rank",
    "reports_to_user",
    "requested_processes",
    "shows_progress",
    "started_by_user",
    "store",
    "world_size",
]

PATIENCE = timedelta(days=7)
"""how long a process waits for the others, such as for a distillation that only the main process does"""

_alone = False
"""whether this process works by itself at the moment"""


def launched() -> bool:
    """Return whether this process is one of several, with its number in the environment."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def started_by_user() -> bool:
    """Return whether the processes were started by the user, with torchrun, and not by `distill.runs.launch`."""
    return launched() and STORE not in os.environ


def rank() -> int:
    """Return the number of this process, from 0; 0 in a block of `alone`."""
    return 0 if _alone or not launched() else int(os.environ["RANK"])


def world_size() -> int:
    """Return the number of processes; 1 in a block of `alone`."""
    return 1 if _alone or not launched() else int(os.environ["WORLD_SIZE"])


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", os.environ["RANK"])) if launched() else 0


def is_main_process() -> bool:
    """Return whether this process writes the files of the run."""
    return rank() == 0


def shows_progress() -> bool:
    """Return whether this process prints messages and progress bars, also in a block of `alone`."""
    return not launched() or int(os.environ["RANK"]) == 0


@contextmanager
def alone() -> Iterator[None]:
    """Work by itself in the block, as a single process does: without waiting for the others, which do other work."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def barrier() -> None:
    """Wait until all processes have reached this call."""
    if world_size() > 1 and dist.is_initialized():
        dist.barrier()


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
    dist.init_process_group(backend, store=store(), rank=rank(), world_size=world_size(), timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after an error: it would wait for collectives that this process never joins


@cache
def store() -> "dist.Store":  # pyright: ignore[reportPrivateImportUsage]  # public by torch's documentation
    """Return the store by which the processes find each other and exchange messages."""
    from torch.distributed import FileStore, PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]

    found = FileStore(os.environ[STORE], world_size()) if STORE in os.environ else next(rendezvous("env://"))[0]
    found.set_timeout(PATIENCE)
    # torchrun's store outlives a restart: without a prefix of its own it would have the messages of dead processes.
    return PrefixStore(f"restart-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)


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
        return not _store_answers() or store().add("refused", 1) == 1
    except RuntimeError:  # the store is gone
        return True


def failed_elsewhere() -> bool:
    """Return whether another process met bad input, so that an error in this process is only a consequence."""
    try:
        return _store_answers() and store().check(["refused"])
    except RuntimeError:  # the store is gone
        return False


def reports_to_user() -> bool:
    """Return whether this process prints messages about the whole command: the main process, if `launch` does not."""
    return shows_progress() and STORE not in os.environ


def requested_processes() -> int | None:
    """Return the number of processes in the environment variable NPROC, None where the variable is not set.

    Raises:
        InputError: the variable is no whole number >= 1.
    """
    text = os.environ.get("NPROC")
    if text is None:
        return None
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
            raise InputError(
                f"{count} processes, but --device is {device}: give --device cuda, of which each process takes one"
            )
        most, place = torch.cuda.device_count(), "GPUs, of which each process takes one"
    elif device.type == "cpu":
        cores = os.cpu_count() or 1
        most, place = max(8, 2 * cores), f"processes on {cores} cores"
    else:
        raise InputError(f"{count} processes, but --device is {device}; several processes take cpu or cuda")
    if count > most:
        raise InputError(f"{count} processes (--processes, NPROC); this machine has place for at most {most} {place}")


def in_processes(count: int, device: torch.device, words: list[str], work: Callable[[], int]) -> int:
    """Do the work of a command, in several processes if there are to be several.

    On a CPU under Linux the processes are forks of this one. Elsewhere each runs the command line anew, and this
    process does not return.

    Args:
        count: number of processes; ignored in a process that is one of several.
        device: of --device.
        words: the command line.
        work: the work of one process; returns its exit code and does not raise.

    Returns:
        the exit code.
    """
    if count == 1 or launched():
        return work()
    if device.type == "cpu" and sys.platform.startswith("linux"):
        return fork(count, work)
    if device.type != "cpu":  # threads that prepare the data; on a CPU `distill.app.processes` has the rule
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    become_launcher(count, words)
    raise AssertionError("execv does not return")


def become_launcher(count: int, words: list[str]) -> None:
    """Replace this process by `distill.runs.launch`, which starts this command line in `count` processes."""
    sys.stdout.flush()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until `launch` handles them
    os.execv(sys.executable, [sys.executable, "-m", "distill.runs.launch", str(count), *words])


def exit_process(code: int) -> None:
    """End this process; with an error, do not wait for collectives of other processes."""
    if code and launched():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code)
    sys.exit(code)
