"""Run the cells of a table, each in a separate process with a log file: a failed cell does not stop the others."""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from distill.runs.files import write_atomic
from distill.runs.threads import cores

__all__ = ["SET", "Cell", "run_cells"]

ROOT = Path(__file__).parent.parent.parent
SET = "distilled.safetensors"


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    name: str
    """name of the cell in messages, and of the log file"""
    words: tuple[str, ...]
    """command line of the run, without the program"""
    data: str
    """name of the data in tables"""
    run: Path
    """folder of the run"""
    complete: Callable[[Path], bool]
    """folder -> whether it has every column of the table"""
    evaluation: Callable[[], Path] | None
    """returns the folder of the second evaluation of a finished run's set; None if the table shows the run's
    evaluation"""
    evaluation_words: tuple[str, ...] = ()
    """command line of the second evaluation"""
    trouble: str = ""
    """why the cell cannot run; empty if it can"""
    set_from: Path | None = None
    """folder of a run that distils the same set, which this run takes over instead of distilling it again; None: this
    run distils"""

    @property
    def distilled(self) -> bool:
        """Whether the run is finished and, if there is a second evaluation, has the set for it."""
        finished = self.complete(self.run) if self.evaluation is None else (self.run / "table.csv").exists()
        return finished and (self.evaluation is None or (self.run / SET).exists())

    @property
    def folder(self) -> Path:
        """The folder with the results that the table shows; the run must be finished."""
        return self.evaluation() if self.evaluation else self.run

    @property
    def done(self) -> bool:
        """Whether the results that the table shows exist."""
        return not self.trouble and self.distilled and self.complete(self.folder)

    @property
    def next(self) -> tuple[str, ...]:
        """The command line to run next."""
        return self.evaluation_words if self.distilled else self.words


def run_cells(
    missing: list[Cell], logs: Path, jobs: int, devices: list[str], say: Callable[[str], object]
) -> Generator[tuple[Cell, str], None, None]:
    """Run cells, `jobs` at a time, and yield each finished cell with an error message, "" on success.

    On a CPU under Linux each cell has cores of its own, and as many processes: all cores are shared by the cells that
    run. A cell waits for the cell whose set it takes over; if that cell fails, it distils by itself. When this
    generator ends, also by an error, all running cells stop at a checkpoint.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    environment.pop("NPROC", None)  # of all cells together
    queue, running = list(missing), {}
    slots, free = list(range(jobs)), _own_cores(devices)
    if jobs > 1 and not free:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
    try:
        while queue or running:
            while slots and (ready := _ready(queue, [cell for cell, *_ in running.values()])):
                share = max(1, len(free) // min(len(slots), len(ready)))
                own, free = free[:share], free[share:]
                cell, slot = ready[0], slots.pop(0)
                queue.remove(cell)
                _take_over_set(cell)
                words = cell.next
                program = [sys.executable, "-m", "distill", *words, "--device", devices[slot % len(devices)]]
                with open(logs / f"{cell.name}.log", "ab") as log:
                    options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": environment}
                    process = subprocess.Popen(program, preexec_fn=partial(_prepare, own), **options)
                    running[process] = cell, slot, words, own
                say(", ".join(cell.name for cell, *_ in running.values()))
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                cell, slot, words, own = running.pop(process)
                slots.append(slot)
                free += own
                trouble = _trouble(process.returncode, logs / f"{cell.name}.log")
                if not trouble and not cell.done:
                    if cell.next != words:  # the run is finished; the second evaluation of its set comes next
                        queue.insert(0, cell)
                        continue
                    trouble = f"the cell ended without error, but its set or table is missing: move {cell.run} away"
                yield cell, trouble
            if not ended:
                time.sleep(0.1)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def _ready(queue: list[Cell], running: list[Cell]) -> list[Cell]:
    """Return the cells of the queue that wait for no set of another cell."""
    unfinished = {cell.run for cell in (*queue, *running)}
    return [cell for cell in queue if cell.set_from not in unfinished]


def _take_over_set(cell: Cell) -> None:
    """Copy the set that the cell takes over, unless the cell has a set or the other run has none."""
    if cell.set_from and (cell.set_from / SET).exists() and not (cell.run / SET).exists():
        source = cell.set_from / SET
        write_atomic(cell.run / SET, lambda file: shutil.copyfile(source, file))


def _own_cores(devices: list[str]) -> list[int]:
    """Return the numbers of the cores that cells on a CPU divide; none where a process cannot be bound to cores."""
    bound = hasattr(os, "sched_getaffinity") and set(devices) == {"cpu"}
    return sorted(os.sched_getaffinity(0)) if bound else []


def _prepare(own: list[int]) -> None:
    """Bind a new process to its cores, and on Linux let the kernel stop it when its parent ends."""
    if own:
        os.sched_setaffinity(0, own)
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _trouble(code: int, log: Path) -> str:
    """Return the last line of the log of a failed cell; "" for exit code 0."""
    if code == 0:
        return ""
    if code < 0:
        note = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-code).name}{note}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {code}").removeprefix("run.sh: ")
