"""A run of five students under the paper's three attacks, by one process and by two: whole command, tables, memory.

The goals: the same table, and at most 2 GB for all processes together, at the width of the paper's network and 28 px.
`bench processes` has the evaluation without the start of the command.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.side_by_side import Row

__all__ = ["bench", "command", "memory_of"]

ROOT = Path(__file__).parents[2]
FIVE = "random digits --recipe quick --ipc 1 --students 5 --test-images 359 --attacks linf_star,linf,l2 --backbone "
FIVE += "convnet:width=64,depth=2"
WIDE = "random digits --image-size 28 --ipc 1 --students 1 --student.epochs 3 --test-images 250 --attacks "
WIDE += "linf_star,linf,l2 --backbone convnet:width=128"
ROUNDS = 2


def bench() -> list[Row]:
    """Return the seconds and the memory of each case."""
    print("\nfive students under three attacks, whole command")
    seconds: dict[int, list[float]] = {1: [], 2: []}
    tables = []
    for _ in range(ROUNDS):
        for processes, times in seconds.items():
            taken, _, table = command(FIVE, processes)
            times.append(taken)
            tables.append(table)
    rows: list[Row] = []
    for processes, times in seconds.items():
        ratio = min(seconds[1]) / min(times)
        row = {"title": "five students", "way": f"{processes} processes", "seconds": min(times), "speedup": ratio}
        rows.append(row | {"same_table": tables == tables[:1] * len(tables)})
        print(f"  {processes} processes{'':32s}{min(times):10.2f} s {ratio:8.2f} times as fast", flush=True)
    same = all(table == tables[0] for table in tables)
    print(f"  the same table each time: {'yes' if same else 'NO'}")
    print("\nmemory of a student, ConvNet-3 of width 128, 28 px, under three attacks (goal: 2,000 MB)")
    for processes in (1, 2):
        _, peak, _ = command(WIDE, processes)
        rows.append({"title": "memory", "way": f"{processes} processes", "megabytes": peak})
        print(f"  {processes} processes{'':32s}{peak:10.0f} MB", flush=True)
    return rows


def command(words: str, processes: int) -> tuple[float, float, list[list[str]]]:
    """Run a command in a folder of its own.

    Args:
        words: after the program, in one text.
        processes: how many.

    Returns:
        seconds, the most memory that all its processes held together in MB, and the accuracies of its table.
    """
    large = str(2**35)  # as run.sh sets them
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": large, "MALLOC_TRIM_THRESHOLD_": large}
    environment.pop("OMP_NUM_THREADS", None)
    with tempfile.TemporaryDirectory() as folder:
        program = [sys.executable, "-m", "distill", *words.split(), "--processes", str(processes), "--runs", folder]
        start, peak = time.perf_counter(), 0.0
        with subprocess.Popen(
            program, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None:
                peak = max(peak, memory_of(process.pid))
                time.sleep(0.1)
        taken = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"{words} ended with exit code {process.returncode}")
        (path,) = Path(folder).rglob("table.csv")
        with open(path, newline="", encoding="utf-8") as lines:
            table = [[row["attack"], row["mean"], row["std"], row["verdict"]] for row in csv.DictReader(lines)]
    return taken, peak, table


def memory_of(pid: int) -> float:
    """Return the MB that a process and its descendants hold; pages that they share count once (Linux)."""
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1000
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(memory_of(int(child)) for child in (task / "children").read_text().split())
    except OSError:  # it has ended
        pass
    return total
