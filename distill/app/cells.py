"""Cells of a table, each in a process of its own with its output in a file: a failure does not stop the others."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from distill.data.image_files import cores

__all__ = ["SET", "Cell", "run_cells"]

ROOT = Path(__file__).parent.parent.parent
SET = "distilled.safetensors"


@dataclass(frozen=True)
class Cell:
    """One run of the table."""

    name: str
    """for messages, and of its log"""
    words: tuple[str, ...]
    """its command line behind the program"""
    data: str
    """the data as tables name it"""
    run: Path
    """folder of the run"""
    complete: Callable[[Path], bool]
    """tells whether a folder has every column of the table"""
    evaluation: Callable[[], Path] | None
    """gives the folder of the second evaluation of a finished run's set; None where the run's own evaluation counts"""
    evaluation_words: tuple[str, ...] = ()
    """the command line of the second evaluation"""
    trouble: str = ""
    """why it cannot run"""

    @property
    def distilled(self) -> bool:
        """Whether the run is finished, with the set that a second evaluation needs."""
        finished = self.complete(self.run) if self.evaluation is None else (self.run / "table.csv").exists()
        return finished and (self.evaluation is None or (self.run / SET).exists())

    @property
    def folder(self) -> Path:
        """The folder with the results that the table shows, of a finished run."""
        return self.evaluation() if self.evaluation else self.run

    @property
    def done(self) -> bool:
        """Whether the results that the table shows are there."""
        return not self.trouble and self.distilled and self.complete(self.folder)

    @property
    def next(self) -> tuple[str, ...]:
        """The command line to run next."""
        return self.evaluation_words if self.distilled else self.words


def run_cells(
    missing: list[Cell], logs: Path, jobs: int, devices: list[str], say: Callable[[str], object]
) -> Generator[tuple[Cell, str], None, None]:
    """Run cells, `jobs` at a time, and yield each finished cell with its error, "" for none.

    When this ends, by an error too, all running cells stop at a checkpoint.
    """
    logs.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // jobs)))
    queue, running = list(missing), {}
    slots = list(range(jobs))
    try:
        while queue or running:
            while queue and slots:
                cell, slot = queue.pop(0), slots.pop(0)
                words = cell.next
                program = [sys.executable, "-m", "distill", *words, "--device", devices[slot % len(devices)]]
                with open(logs / f"{cell.name}.log", "ab") as log:
                    options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": environment}
                    running[subprocess.Popen(program, preexec_fn=_end_with_parent, **options)] = cell, slot, words
                say(", ".join(cell.name for cell, *_ in running.values()))
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                cell, slot, words = running.pop(process)
                slots.append(slot)
                trouble = _trouble(process.returncode, logs / f"{cell.name}.log")
                if not trouble and not cell.done:
                    if cell.next != words:  # the run is finished, and its set is to be evaluated a second time
                        queue.insert(0, cell)
                        continue
                    trouble = f"it ended well, but its set or its table is not there: move {cell.run} away"
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


def _end_with_parent() -> None:
    """Make Linux stop this process when its parent ends in any way."""
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _trouble(code: int, log: Path) -> str:
    """Return the error of a cell that ended, the last line of its log; "" for exit code 0."""
    if code == 0:
        return ""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}{', perhaps for its memory' if code == -signal.SIGKILL else ''}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit code {code}").removeprefix("run.sh: ")
