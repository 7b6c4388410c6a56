"""Students and their columns by several processes: the same results to the bit, and what a killed process leaves."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.app.main import main

ROOT = Path(__file__).parents[2]
COLUMNS = "linf,pgd@0.2,cw:steps=4,search_steps=2@l2:1,transfer@0.1,noise@0.2,worst@0.2"
WORDS = ["random", "digits", "--recipe", "smoke", "--students", "3", "--test-images", "300", "--attacks", COLUMNS]
WORDS += ["--backbone", "convnet:width=8,depth=2", "--student.epochs", "20"]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks and /proc are of Linux")


def begin(words: list[str], runs: Path, processes: int) -> subprocess.Popen:
    words = [sys.executable, "-m", "distill", *words, "--runs", str(runs), "--processes", str(processes)]
    options = {"cwd": ROOT, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def run(words: list[str], runs: Path, processes: int) -> tuple[int, str, str]:
    """Return the exit code of a command, its output and its errors."""
    with begin(words, runs, processes) as process:
        out, error = process.communicate(timeout=200)
    return process.returncode, out, error


def results(runs: Path) -> dict[str, object]:
    """Return the accuracies of the table, and every tensor of the students."""
    (table,) = runs.rglob("table.csv")
    with open(table, newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    found: dict[str, object] = {row["attack"]: [row["mean"], row["std"], row["verdict"]] for row in rows}
    for path in table.parent.glob("students/*.safetensors"):
        found |= {f"{path.name} {name}": tensor for name, tensor in load_file(path).items()}
    return found


def equal(one: dict[str, object], other: dict[str, object]) -> bool:
    def same(name: str) -> bool:
        a, b = one[name], other[name]
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    return one.keys() == other.keys() and all(map(same, one))


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What one process finds."""
    runs = tmp_path_factory.mktemp("one")
    assert run(WORDS, runs, 1)[0] == 0
    return results(runs)


@pytest.mark.parametrize("count", [2, 3])
def test_the_results_are_equal_to_the_bit(count: int, expected: dict[str, object], tmp_path: Path) -> None:
    code, out, error = run(WORDS, tmp_path, count)
    assert code == 0, error
    assert out.count("random on digits") == 1
    found = results(tmp_path)
    assert len(found) > 40
    assert equal(found, expected)
    assert not list(tmp_path.rglob("*-part-*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_ends_the_command_which_goes_on(
    number: signal.Signals, expected: dict[str, object], tmp_path: Path
) -> None:
    with begin(WORDS, tmp_path, 2) as process:
        deadline = time.monotonic() + 100
        while not list(tmp_path.rglob("*-part-*")) and time.monotonic() < deadline:
            time.sleep(0.005)
        second = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[1]
        os.kill(int(second), number)
        _, error = process.communicate(timeout=100)
    lines = [line for line in error.splitlines() if line.startswith("run.sh")]
    if number == signal.SIGKILL:
        line = "run.sh: process 1 of 2 was killed by SIGKILL: all end; the same command continues from the last "
        line += "checkpoint"
        assert (process.returncode, lines) == (1, [line]), error
    else:
        line = "run.sh: interrupted; the same command continues from the last checkpoint"
        assert (process.returncode, lines) == (130, [line]), error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("table.csv"))
    assert run(WORDS, tmp_path, 2)[0] == 0
    assert equal(results(tmp_path), expected)


def test_further_columns_are_added_by_any_number_of_processes(tmp_path: Path) -> None:
    few = [*WORDS[:-6], "--backbone", "convnet:width=8,depth=2", "--student.epochs", "20"]
    for attacks, count in (("linf", 2), ("linf,l2", 1), ("l2,pgd@0.2", 2)):
        assert run([*few, "--attacks", attacks], tmp_path / "some", count)[0] == 0
    assert run([*few, "--attacks", "linf,l2,pgd@0.2"], tmp_path / "all", 1)[0] == 0
    assert equal(results(tmp_path / "some"), results(tmp_path / "all"))


@pytest.mark.parametrize("words", [["--processes", "0"], ["--processes", "1000000"], ["--processes", "two"]])
def test_an_impossible_number_of_processes_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*WORDS, "--runs", str(tmp_path), *words]) == 2
    assert words[1] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
