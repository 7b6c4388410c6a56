"""Starts a command line in several processes: `python -m distill.runs.launch COUNT METHOD DATASET [--flags]`.

A process that ends with bad input (exit code 2) or is interrupted (130) ends all processes with that code. If a process
dies in another way, all are started again, as torchrun does it, and the run resumes from its last checkpoint. On Linux
the processes do not outlive this one. `distill.runs.ranks.become_launcher` replaces its process by this module, which
therefore holds no data and does not import torch.
"""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["ENDING", "INTERRUPTED", "RESTARTS", "STORE", "launch"]

RESTARTS = 3
"""how often all processes are restarted"""
STORE = "DISTILL_STORE"
"""environment variable of each process: path of the file by which the processes find each other"""
ENDING = {signal.SIGINT, signal.SIGTERM}
GRACE = 2.0
"""seconds that the other processes have to end by themselves once a process has ended all"""
INTERRUPTED = "\nrun.sh: interrupted; the same command continues from the last checkpoint"


def launch(count: int, words: list[str]) -> int:
    """Run `python WORDS` in several processes, each with its RANK, LOCAL_RANK and WORLD_SIZE in its environment.

    Args:
        count: number of processes.
        words: of the command line, after the interpreter.

    Returns:
        the exit code: 0; 2 or 130 if a process ended with it; 1 if processes died more than RESTARTS times.
    """
    came: list[int] = []  # the signals that this process received
    for number in ENDING:
        signal.signal(number, lambda got, _: came.append(got))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # blocked by `ranks.become_launcher` until here
    with tempfile.TemporaryDirectory(prefix="distill-") as folder:
        for restart in range(RESTARTS + 1):
            processes: list[subprocess.Popen] = []
            try:
                for rank in range(count):
                    processes.append(_begin(words, rank, count, restart, Path(folder) / f"restart-{restart}"))
                rank, code = _first_end(processes, came)
                if code in (2, 130):
                    _let_end(processes, came, signal.SIGINT if code == 130 else None)
            finally:
                for process in processes:
                    process.kill()
                    process.wait()
            if code == 130:
                print(INTERRUPTED, file=sys.stderr)
            if code in (0, 2, 130):
                return code
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            then = f"all are started again ({restart + 1} of {RESTARTS})"
            if restart == RESTARTS:
                then = f"it is the {RESTARTS + 1}th time, so all end; the same command continues"
            print(f"run.sh: process {rank} of {count} {how}: {then} from the last checkpoint", file=sys.stderr)
    return 1


def _begin(words: list[str], rank: int, count: int, restart: int, store: Path) -> subprocess.Popen:
    """Start a process, in a group of its own, so that Ctrl-C in a terminal reaches it once, from here."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, STORE: store}
    own |= {"TORCHELASTIC_RESTART_COUNT": restart}
    environment = os.environ | {name: str(value) for name, value in own.items()}
    return subprocess.Popen([sys.executable, *words], env=environment, process_group=0, preexec_fn=_dying_with_parent())


def _dying_with_parent() -> Callable[[], None] | None:
    """Return a function that has a new process killed when its parent dies; None where the system cannot do that."""
    if not sys.platform.startswith("linux"):
        return None
    set_option, death_signal, parent = ctypes.CDLL(None).prctl, 1, os.getpid()

    def request_signal() -> None:
        set_option(death_signal, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the request
            os._exit(1)

    return request_signal


def _first_end(processes: list[subprocess.Popen], came: list[int]) -> tuple[int, int]:
    """Wait until all processes ended well, one failed, or the user interrupts.

    Returns:
        number and exit code of the process that decides: (0, 0) if all ended well, (0, 130) after an interrupt.
    """
    while True:
        codes = [process.poll() for process in processes]
        bad = [(rank, code) for rank, code in enumerate(codes) if code]
        if bad:  # bad input comes first, then a killed process: the others fail for lack of it
            return min(bad, key=lambda each: (each[1] not in (2, 130), each[1] > 0))
        if came:
            return 0, 130
        if None not in codes:
            return 0, 0
        time.sleep(0.05)


def _let_end(processes: list[subprocess.Popen], came: list[int], number: signal.Signals | None) -> None:
    """Wait GRACE seconds, or until the user's next signal, for processes to end by themselves.

    Args:
        processes: all of them, some ended.
        came: the signals that this process received.
        number: the signal to send them; None for none.
    """
    for process in processes:
        if number is not None and process.poll() is None:
            process.send_signal(number)
    before, deadline = len(came), time.monotonic() + GRACE
    while any(process.poll() is None for process in processes):
        if len(came) > before or time.monotonic() > deadline:
            break
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(launch(int(sys.argv[1]), ["-m", "distill", *sys.argv[2:]]))
