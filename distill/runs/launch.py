"""Starts one command in several processes of this machine, and ends all of them together.

`fork` makes the processes from this one, with all that it has loaded: for CPUs under Linux. Elsewhere
`distill.runs.ranks.become_launcher` replaces its process by this module, `python -m distill.runs.launch COUNT METHOD
DATASET [--flags]`, which starts the command line anew in each process; this module therefore does not import torch.

The first process that fails ends all: with bad input (exit code 2) or after an interrupt (130) by that code, else by
exit code 1 and one line. The same command continues from the last checkpoint. On Linux the processes do not outlive
the one that started them.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

__all__ = ["ENDING", "INTERRUPTED", "STORE", "fork", "hear_signals", "interrupted", "launch"]

STORE = "DISTILL_STORE"
"""environment variable of each process: path of the file by which the processes find each other"""
ENDING = {signal.SIGINT, signal.SIGTERM}
GRACE = 2.0
"""seconds that the other processes have to end by themselves once a process has ended all"""
LATER = 0.5
"""seconds before a fork prints an error: the death of another process, if this is the cause, ends the fork meanwhile"""
INTERRUPTED = "\nrun.sh: interrupted; the same command continues from the last checkpoint"


_heard: list[int] = []
"""signals that ended, or should have ended, what this process does"""


def hear_signals() -> None:
    """Let SIGINT and SIGTERM raise KeyboardInterrupt in the main thread, and remember them for `interrupted`."""
    _heard.clear()
    for number in ENDING:
        signal.signal(number, _interrupt)


def interrupted() -> bool:
    """Return whether a signal came since `hear_signals`: a library may have turned the interruption into its error."""
    return bool(_heard)


def _interrupt(number: int, _: FrameType | None) -> None:
    _heard.append(number)
    raise KeyboardInterrupt


class Process(Protocol):
    """A process that was started: `subprocess.Popen`, or `Forked`."""

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        ...

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        ...

    def send_signal(self, number: int, /) -> None:
        """Send a signal to a process that has not ended."""
        ...


class Forked:
    """A process that `fork` made."""

    def __init__(self, pid: int):
        self.pid, self._code = pid, None

    def poll(self, options: int = os.WNOHANG) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, options)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.poll(0)
        assert code is not None
        return code

    def send_signal(self, number: int, /) -> None:
        """Send a signal to a process that has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def launch(count: int, words: list[str]) -> int:
    """Run `python WORDS` in several processes, each with its RANK, LOCAL_RANK and WORLD_SIZE in its environment.

    Args:
        count: number of processes.
        words: of the command line, after the interpreter.

    Returns:
        the exit code: 0; 2 or 130 if a process ended with it; 1 if a process died in another way.
    """
    dies = _dying_with_parent()

    def begin(own: dict[str, str]) -> Process:
        """Start a process, in a group of its own, so that Ctrl-C in a terminal reaches it once, from here."""
        return subprocess.Popen([sys.executable, *words], env=os.environ | own, process_group=0, preexec_fn=dies)

    return _together(count, begin)


def fork(count: int, work: Callable[[], int]) -> int:
    """Run `work` in several forks of this process, each with its RANK, LOCAL_RANK and WORLD_SIZE in its environment.

    The forks must use one thread each where this process has used several: threads do not survive a fork.

    Args:
        count: number of processes.
        work: returns the exit code of its process; it must not raise.

    Returns:
        the exit code, as `launch`.
    """
    dies = _dying_with_parent()

    def begin(own: dict[str, str]) -> Process:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # else each fork writes what is in the buffer
        with warnings.catch_warnings():  # of Python 3.12 and later, about threads
            warnings.simplefilter("ignore", DeprecationWarning)
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until the fork has handlers of its own
            pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            return Forked(pid)
        code = 1
        try:
            os.setpgid(0, 0)
            if dies is not None:
                dies()
            hear_signals()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            os.environ.update(own)
            code = work()
        except BaseException:
            time.sleep(LATER)
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):  # None, or closed at the other end
                    stream.flush()
            os._exit(code)

    return _together(count, begin)


def _together(count: int, begin: Callable[[dict[str, str]], Process]) -> int:
    """Start all processes and wait for their end.

    Args:
        count: number of processes.
        begin: environment of a process -> the process, started.

    Returns:
        the exit code of the whole.
    """
    folder = tempfile.mkdtemp(prefix="distill-")
    processes: list[Process] = []
    with _signals() as came:
        try:
            for rank in range(count):
                own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
                own |= {STORE: Path(folder) / "store"}
                processes.append(begin({name: str(value) for name, value in own.items()}))
            rank, code = _first_end(processes, came)
            if code in (2, 130):
                _let_end(processes, came, signal.SIGINT if code == 130 else None)
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)
    if code == 130:
        print(INTERRUPTED, file=sys.stderr)
    if code in (0, 2, 130):
        return code
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    then = "all end; the same command continues from the last checkpoint"
    print(f"run.sh: process {rank} of {count} {how}: {then}", file=sys.stderr)
    return 1


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that end a command in the list that is yielded; the earlier handlers return after it."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in ENDING}
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # blocked by `ranks.become_launcher` until here
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def _first_end(processes: Sequence[Process], came: list[int]) -> tuple[int, int]:
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
        time.sleep(0.02)


def _let_end(processes: Sequence[Process], came: list[int], number: signal.Signals | None) -> None:
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
