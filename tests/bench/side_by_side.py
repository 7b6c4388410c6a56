"""Ratios: several ways to do one thing, timed in turn in one process, against the first of them.

Alternating, so that a slow minute of the machine falls on all; the minimum of the rounds, since other work on the
machine only ever adds time; one untimed round before. A case ends after some seconds, with fewer rounds if need be.
"""

import json
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from distill.runs.provenance import device_name

__all__ = ["Row", "compare", "environment", "peak_megabytes", "rows_of", "save"]

Row = dict[str, Any]


def compare(
    title: str,
    ways: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 5,
    seconds: float | None = None,
    goals: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """Time every way, print a line each, and return the rows.

    Args:
        title: what is done, with its sizes.
        ways: name -> what to time; the first is the reference of the ratios.
        repeats: timed rounds, at most.
        seconds: after which no further round begins; one round is always timed. None for no limit.
        goals: way -> the goal or floor of its ratio, printed beside it.
        clock: seconds; `time.process_time` for those of the CPU, which other work on the machine hardly lengthens.

    Returns:
        a row a way: title, way, seconds (minimum), ratio to the first way (below 1 is faster), repeats, goal.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    begin = time.perf_counter()
    rounds = 0
    for round_ in range(repeats + 1):
        if round_ > 1 and seconds is not None and time.perf_counter() - begin > seconds:
            break
        for name, way in ways.items():
            start = clock()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                times[name].append(clock() - start)
        rounds = round_
    return rows_of(title, {name: min(found) for name, found in times.items()}, rounds, goals)


def rows_of(title: str, least: Mapping[str, float], rounds: int, goals: Mapping[str, str] | None = None) -> list[Row]:
    """Print a line for each way, and return its row, from the least seconds of each; see `compare`."""
    first = next(iter(least.values()))
    print(f"\n{title} (minimum of {rounds} rounds)")
    rows = []
    for name, value in least.items():
        goal = (goals or {}).get(name, "")
        row = {"title": title, "way": name, "seconds": value, "ratio": value / first, "repeats": rounds, "goal": goal}
        rows.append(row)
        print(f"  {name:44s}{value:10.4f} s {value / first:8.2f} x   {goal}".rstrip(), flush=True)
    return rows


def peak_megabytes(way: Callable[[], object]) -> float:
    """Return by how many MB a call raises the memory held by tensors, at most.

    On a GPU the allocator's own count; on a CPU summed from the profiler's allocations and releases.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        way()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def environment() -> Row:
    """Return what the figures depend on: device, threads, versions, commit."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def save(name: str, rows: list[Row], folder: Path) -> Path:
    """Write the rows and the environment as JSON, and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"bench": name, "environment": environment(), "rows": rows}, indent=1) + "\n")
    return path
