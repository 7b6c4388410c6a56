"""How many processes a command uses: all cores or all GPUs, as far as memory goes, or the number that is given."""

import sys
from pathlib import Path

import pytest
import torch

from distill.app import processes
from distill.app.processes import MEMORY, free_memory, number_of_processes
from distill.app.start import RunOptions
from distill.errors import InputError
from distill.runs import threads

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with six cores, three GPUs and much memory."""
    for name in ("NPROC", "OMP_NUM_THREADS", "RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    monkeypatch.setattr(threads, "CGROUP", Path("nowhere"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(processes, "free_memory", lambda: 100 * MEMORY)
    monkeypatch.setattr(sys, "platform", "linux")
    return monkeypatch


def test_all_cores_or_all_devices() -> None:
    assert number_of_processes(RunOptions(), CPU) == (6, False)
    assert number_of_processes(RunOptions(), GPU) == (3, False)
    assert number_of_processes(RunOptions(), torch.device("cuda:1")) == (1, False)
    assert number_of_processes(RunOptions(), torch.device("mps")) == (1, False)


def test_threads_and_memory_are_counted(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("OMP_NUM_THREADS", "2")
    assert number_of_processes(RunOptions(), CPU) == (3, False)
    machine.setenv("OMP_NUM_THREADS", "60")
    assert number_of_processes(RunOptions(), CPU) == (1, False)
    machine.delenv("OMP_NUM_THREADS")
    machine.setattr(processes, "free_memory", lambda: 4 * MEMORY + 1)
    assert number_of_processes(RunOptions(), CPU) == (4, False)
    machine.setattr(processes, "free_memory", lambda: 10)
    assert number_of_processes(RunOptions(), CPU) == (1, False)


def test_a_flag_comes_before_the_environment(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("NPROC", "2")
    assert number_of_processes(RunOptions(), CPU) == (2, True)
    assert number_of_processes(RunOptions(processes=4), CPU) == (4, True)
    with pytest.raises(InputError, match=r"5 processes .*; this machine has place for at most 3 GPUs"):
        number_of_processes(RunOptions(processes=5), GPU)


def test_one_of_several_has_their_number(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("RANK", "1")
    machine.setenv("WORLD_SIZE", "5")
    assert number_of_processes(RunOptions(), CPU) == (5, True)  # torchrun
    machine.setenv("DISTILL_STORE", "file")
    assert number_of_processes(RunOptions(), CPU) == (5, False)  # started by the command itself
    machine.setenv("NPROC", "5")
    assert number_of_processes(RunOptions(), CPU) == (5, True)


def test_a_container_has_limits(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (threads, processes):
        machine.setattr(module, "CGROUP", tmp_path)
    for text, count in (("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("nonsense", 6)):
        (tmp_path / "cpu.max").write_text(f"{text}\n")
        assert number_of_processes(RunOptions(), CPU) == (count, False)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert free_memory() == 4000000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() > 2**26


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/meminfo is of Linux")
def test_memory_is_of_this_machine() -> None:
    assert 2**26 < free_memory() < 2**50
